package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/internal/devpg"
	"kluis/internal/testing/hsmtest"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/openapi/client"
	"kluis/server"
)

// The same request again, under the same key, changes nothing more, and gets
// the consent as it is by then; another request under the key is refused.
func TestIdempotency(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e, other := w.customer(1, w.a), w.customer(2, w.a)
	key := newKey()
	create := func(change form, headers ...string) reply {
		return w.post(w.a, w.token(w.a), "/v1/consents", w.form(e, change), append([]string{"Idempotency-Key", key}, headers...)...)
	}
	k := w.consentOf(create(nil), 201)
	w.tap.taken()
	again := create(nil)
	if got := w.consentOf(again, 201); got.Id != k.Id || got.State != client.ConsentStateREQUESTED {
		t.Errorf("%+v", got)
	}
	if calls := w.tap.taken(); calls != "supplier key legal-file record" {
		t.Errorf("calls %q", calls)
	}
	if rec := w.lastRecord(); rec.Operation != audit.ConsentStep || rec.Outcome != audit.Given || rec.ConsentID != k.Id || rec.FileVersion != 4 {
		t.Errorf("record %+v", rec)
	}
	// The same said in other words: members in another order, a named supplier,
	// another zone.
	zone := must(time.Parse(time.RFC3339, until())).In(time.FixedZone("", 3600)).Format(time.RFC3339)
	if got := w.consentOf(create(form{"supplier": w.a.gln.String(), "validUntil": zone}), 201); got.Id != k.Id {
		t.Errorf("%+v", got)
	}
	// Another process, another token: the key is the supplier's.
	w.a.raw = ""
	if got := w.consentOf(create(nil), 201); got.Id != k.Id {
		t.Errorf("%+v", got)
	}
	agent := w.asStaff(w.view(e, authz.Agent), "/v1/consents/"+k.Id.String())
	grantKey := newKey()
	tag := agent.header.Get("ETag")
	granted := w.answer(k, tag, authz.ActionGrant, "Idempotency-Key", grantKey)
	if got := w.consentOf(granted, 200); got.State != client.ConsentStateACTIVE {
		t.Errorf("%+v", got)
	}
	// Sent again its tag is stale, and it is answered all the same.
	repeated := w.answer(k, tag, authz.ActionGrant, "Idempotency-Key", grantKey)
	if got := w.consentOf(repeated, 200); got.State != client.ConsentStateACTIVE || repeated.header.Get("ETag") != granted.header.Get("ETag") {
		t.Errorf("%+v", got)
	}
	if got := w.consentOf(create(nil), 201); got.State != client.ConsentStateACTIVE {
		t.Errorf("as it is now: %+v", got)
	}
	// Another supplier's key of the same name is another.
	w.legalFile(e, meter.Electricity, authz.SetSupply{Supplier: w.b.gln, Days: meter.DayRange{From: day("2026-01-01"), To: meter.MaxDay}})
	if got := w.consentOf(w.post(w.b, w.token(w.b), "/v1/consents", w.form(e, nil), "Idempotency-Key", key), 201); got.Id == k.Id {
		t.Errorf("%+v", got)
	}
	for name, do := range map[string]func() reply{
		"other evidence": func() reply { return create(form{"evidence": "other"}) },
		"another end":    func() reply { return create(form{"to": "2040-01-01"}) },
		"other days":     func() reply { return create(form{"from": "2021-01-01"}) },
		"another metering point": func() reply {
			return w.post(w.a, w.token(w.a), "/v1/consents", w.form(other, nil), "Idempotency-Key", key)
		},
		"another operation": func() reply {
			return w.post(w.a, w.token(w.a), "/v1/consents/"+k.Id.String()+"/revoke", nil, "If-Match", `"x"`, "Idempotency-Key", key)
		},
		"another answer": func() reply { return w.answer(k, tag, authz.ActionReject, "Idempotency-Key", grantKey) },
		"the same by another employee": func() reply {
			token := w.staffToken("agent-18", authz.Agent, errandFor(k, authz.ActionGrant, "call-2026-0815"))
			return w.post(w.portal, token, "/v1/consents/"+k.Id.String()+"/grant", form{"evidence": "call-2026-0815"}, "If-Match", tag, "Idempotency-Key", grantKey)
		},
		"another's answer": func() reply {
			second, _ := w.request(w.a, e, form{"evidence": "second"})
			return w.answer(second, tag, authz.ActionGrant, "Idempotency-Key", grantKey)
		},
	} {
		if r := do(); r.status != 422 || r.problem(t) != "idempotency-key-reused" {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
		if rec := w.lastRecord(); rec.Operation != audit.ConsentStep || rec.Outcome != audit.Refused {
			t.Errorf("%s: record %+v", name, rec)
		}
	}
	w.stands(e, 8, "")
	w.stands(other, 3, "")
}

// together runs requests at the same time.
func together(n int, do func(i int) reply) []reply {
	replies := make([]reply, n)
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			replies[i] = do(i)
		})
	}
	close(start)
	wg.Wait()
	return replies
}

// Two employees answer at once: one wins, and the other is told exactly that.
func TestTwoAnswerAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	var barrier sync.WaitGroup // all have read the facts before any of them goes on
	w.tap.seal = func(ctx context.Context, r server.StepRequest, real server.Sealer) ([]byte, error) {
		if authz.ActionOf(r.Step) != authz.ActionRequest {
			barrier.Done()
			barrier.Wait()
		}
		return real.TakeStep(ctx, r)
	}
	for i := range 4 {
		k, _ := w.request(w.a, e, form{"evidence": fmt.Sprint(i)})
		r := w.asStaff(w.view(e, authz.Agent), "/v1/consents/"+k.Id.String())
		tag := r.header.Get("ETag")
		var token [2]string
		actions := [2]authz.ConsentAction{authz.ActionGrant, authz.ActionReject}
		token[0] = w.staffToken("agent-1", authz.Agent, errandFor(k, authz.ActionGrant, "x"))
		token[1] = w.staffToken("agent-2", authz.Supervisor, errandFor(k, authz.ActionReject, ""))
		barrier.Add(2)
		replies := together(2, func(i int) reply {
			var body any
			if i == 0 {
				body = form{"evidence": "x"}
			}
			return w.post(w.portal, token[i], "/v1/consents/"+k.Id.String()+"/"+actions[i].String(), body, "If-Match", tag)
		})
		winner, loser := replies[0], replies[1]
		if winner.status != 200 {
			winner, loser = loser, winner
		}
		if winner.status != 200 || loser.status != 412 || loser.problem(t) != "precondition-failed" {
			t.Errorf("%d %s\n%d %s", winner.status, winner.body, loser.status, loser.body)
		}
	}
	w.stands(e, 3+8, "")
}

// Writers of one metering point that have nothing to do with each other's
// consents all succeed, one after another; the same request sent twice at once
// is one consent.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	token := w.token(w.a)
	w.a.client = w.http(w.a.cert)
	replies := together(3, func(i int) reply {
		return w.post(w.a, token, "/v1/consents", w.form(e, form{"evidence": fmt.Sprint("many-", i)}))
	})
	for _, r := range replies {
		w.consentOf(r, 201)
	}
	key := newKey()
	ids := map[string]int{}
	for _, r := range together(4, func(int) reply {
		return w.post(w.a, token, "/v1/consents", w.form(e, form{"evidence": "one"}), "Idempotency-Key", key)
	}) {
		ids[w.consentOf(r, 201).Id.String()]++
	}
	if len(ids) != 1 {
		t.Errorf("%v", ids)
	}
	w.stands(e, 7, "1,1,1,1")
}

// The same request, stored by another sending of it after this one has looked
// for its key: it is that step, and not refused because of it.
func TestStoredMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	key := newKey()
	var first, second reply
	w.tap.facts = func(context.Context) error {
		w.tap.facts = nil
		first = w.post(w.a, w.token(w.a), "/v1/consents", w.form(e, nil), "Idempotency-Key", key)
		return nil
	}
	second = w.post(w.a, w.token(w.a), "/v1/consents", w.form(e, nil), "Idempotency-Key", key)
	k := w.consentOf(first, 201)
	if again := w.consentOf(second, 201); again.Id != k.Id {
		t.Errorf("%+v", again)
	}
	tag := w.asStaff(w.view(e, authz.Agent), "/v1/consents/"+k.Id.String()).header.Get("ETag")
	grantKey := newKey()
	w.tap.facts = func(context.Context) error {
		w.tap.facts = nil
		first = w.answer(k, tag, authz.ActionGrant, "Idempotency-Key", grantKey)
		return nil
	}
	second = w.answer(k, tag, authz.ActionGrant, "Idempotency-Key", grantKey)
	if a, b := w.consentOf(first, 200), w.consentOf(second, 200); a.State != client.ConsentStateACTIVE || b.State != client.ConsentStateACTIVE {
		t.Errorf("%+v\n%+v", a, b)
	}
	w.stands(e, 5, "2")
}

// Who never gets through is told so; nothing is stored.
func TestConflictEveryTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	until := day("2030-01-01")
	tries := 0
	w.tap.store = func(ctx context.Context, n server.NewStep, real server.Steps) error {
		// The registrar is faster, again and again.
		tries++
		w.legalFile(e, meter.Electricity, authz.SetOptOut{Days: meter.DayRange{From: until + meter.Day(10*tries), To: until + meter.Day(10*tries) + 1}})
		return real.Store(ctx, n)
	}
	before := len(w.records())
	r := w.post(w.a, w.token(w.a), "/v1/consents", w.form(e, nil))
	if r.status != 409 || r.problem(t) != "conflict" || r.header.Get("Retry-After") == "" || tries != 4 {
		t.Errorf("after %d tries: %d %s", tries, r.status, r.body)
	}
	recs := w.records()
	if last := recs[len(recs)-1]; len(recs) != before+1 || last.Outcome != audit.Refused || last.EAN != e || last.ConsentID != [16]byte{} {
		t.Errorf("%d records, %+v", len(recs)-before, last)
	}
	// Once only: it starts over on the new facts, and succeeds.
	w.tap.store = func(ctx context.Context, n server.NewStep, real server.Steps) error {
		w.tap.store = nil
		w.legalFile(e, meter.Electricity, authz.SetOptOut{Days: meter.DayRange{From: until + 1000, To: until + 1001}})
		return real.Store(ctx, n)
	}
	w.tap.taken()
	w.consentOf(w.post(w.a, w.token(w.a), "/v1/consents", w.form(e, nil)), 201)
	if calls := w.tap.taken(); calls != "supplier key legal-file seal store key legal-file seal store" {
		t.Errorf("calls %q", calls)
	}
	w.stands(e, 3+4+2, "1")
	// A cryptoserver that knows a later version says so, and it is looked up.
	w.tap.seal = func(ctx context.Context, r server.StepRequest, real server.Sealer) ([]byte, error) {
		w.tap.seal = nil
		w.legalFile(e, meter.Electricity, authz.SetOptOut{Days: meter.DayRange{From: until + 2000, To: until + 2001}})
		return nil, server.ErrEvidenceRefused
	}
	w.tap.taken()
	w.consentOf(w.post(w.a, w.token(w.a), "/v1/consents", w.form(e, nil)), 201)
	if calls := w.tap.taken(); calls != "supplier key legal-file seal key legal-file seal store" {
		t.Errorf("calls %q", calls)
	}
	w.stands(e, 3+4+2+2, "1,1")
}

// Whatever fails on the way of a step: nothing is half stored, what is answered
// is true, and sent again under its key the request is done once.
func TestStepFaults(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault   func(*tap)
		status  int
		problem string
		stored  bool // though it is not answered
		records int  // of the first request
	}{
		"the legal file cannot be read": {func(p *tap) { p.facts = func(context.Context) error { return errFault } }, 503, "database-unavailable", false, 0},
		"the legal file hangs":          {func(p *tap) { p.facts = hang }, 504, "deadline-exceeded", false, 0},
		"no cryptoserver": {func(p *tap) {
			p.seal = func(context.Context, server.StepRequest, server.Sealer) ([]byte, error) {
				return nil, fmt.Errorf("%w: gone", server.ErrNoCryptoserver)
			}
		}, 503, "sealing-unavailable", false, 1},
		"a cryptoserver fails": {func(p *tap) {
			p.seal = func(context.Context, server.StepRequest, server.Sealer) ([]byte, error) { return nil, errFault }
		}, 500, "internal-error", false, 1},
		"a cryptoserver hangs": {func(p *tap) {
			p.seal = func(ctx context.Context, _ server.StepRequest, _ server.Sealer) ([]byte, error) {
				return nil, hang(ctx)
			}
		}, 504, "deadline-exceeded", false, 1},
		"sealed, but the answer is lost": {func(p *tap) {
			p.seal = func(ctx context.Context, r server.StepRequest, real server.Sealer) ([]byte, error) {
				_, err := real.TakeStep(ctx, r)
				return nil, errors.Join(err, server.ErrNoCryptoserver)
			}
		}, 503, "sealing-unavailable", false, 1},
		"the token is refused": {func(p *tap) {
			p.seal = func(context.Context, server.StepRequest, server.Sealer) ([]byte, error) {
				return nil, server.ErrTokenRefused
			}
		}, 401, "unauthenticated", false, 1},
		"the evidence is refused": {func(p *tap) {
			p.seal = func(context.Context, server.StepRequest, server.Sealer) ([]byte, error) {
				return nil, server.ErrEvidenceRefused
			}
		}, 500, "evidence-invalid", false, 1},
		"it is not possible by its clock": {func(p *tap) {
			p.seal = func(context.Context, server.StepRequest, server.Sealer) ([]byte, error) {
				return nil, authz.ErrConsentNotPossible
			}
		}, 422, "consent-not-possible", false, 1},
		"storing fails and did not persist": {func(p *tap) {
			p.store = func(context.Context, server.NewStep, server.Steps) error { return errFault }
		}, 503, "database-unavailable", false, 1},
		"storing fails but persisted": {func(p *tap) {
			p.store = func(ctx context.Context, n server.NewStep, real server.Steps) error {
				return errors.Join(real.Store(ctx, n), errFault)
			}
		}, 503, "database-unavailable", true, 1},
		"storing persisted, and then it panics": {func(p *tap) {
			p.store = func(ctx context.Context, n server.NewStep, real server.Steps) error {
				if err := real.Store(ctx, n); err != nil {
					return err
				}
				panic("secret")
			}
		}, 500, "internal-error", true, 1},
		"storing hangs": {func(p *tap) {
			p.store = func(ctx context.Context, _ server.NewStep, _ server.Steps) error { return hang(ctx) }
		}, 504, "deadline-exceeded", false, 1},
		"the record is refused": {func(p *tap) {
			p.store = func(ctx context.Context, n server.NewStep, real server.Steps) error {
				n.Record.InteractionID = [16]byte{}
				return real.Store(ctx, n)
			}
		}, 503, "database-unavailable", false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{})
			e := w.customer(1, w.a)
			key := newKey()
			send := func() reply {
				return w.post(w.a, w.token(w.a), "/v1/consents", w.form(e, nil), "Idempotency-Key", key)
			}
			tc.fault(w.tap)
			r := send()
			if r.status != tc.status || r.problem(t) != tc.problem || strings.Contains(string(r.body), "injected") {
				t.Errorf("%d %s", r.status, r.body)
			}
			if tc.status == 503 && r.header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			if tc.stored {
				w.stands(e, 4, "1")
			} else {
				w.stands(e, 3, "")
			}
			if recs := w.records(); len(recs) != tc.records || len(recs) > 0 && (recs[0].Outcome == audit.Given) != tc.stored {
				t.Errorf("records %+v", recs)
			}
			w.tap.facts, w.tap.seal, w.tap.store = nil, nil, nil
			w.consentOf(send(), 201)
			w.stands(e, 4, "1")
			if recs := w.records(); len(recs) != tc.records+1 || recs[len(recs)-1].Outcome != audit.Given {
				t.Errorf("records %+v", recs)
			}
		})
	}
}

// What comes back from a cryptoserver is stored only if it is the very step
// that was asked for.
func TestSealedStepIsVerified(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e, other := w.customer(1, w.a), w.customer(2, w.a)
	for name, seal := range map[string]func(context.Context, server.StepRequest, server.Sealer) ([]byte, error){
		"nothing": func(context.Context, server.StepRequest, server.Sealer) ([]byte, error) { return nil, nil },
		"the version before": func(_ context.Context, r server.StepRequest, _ server.Sealer) ([]byte, error) {
			return r.LegalFile, nil
		},
		"a supplier's record": func(_ context.Context, r server.StepRequest, _ server.Sealer) ([]byte, error) { return r.Supplier, nil },
		"another step": func(ctx context.Context, r server.StepRequest, real server.Sealer) ([]byte, error) {
			step := r.Step.(authz.RequestConsent)
			step.Evidence = "another"
			r.Step = step
			return real.TakeStep(ctx, r)
		},
		"another metering point": func(ctx context.Context, r server.StepRequest, real server.Sealer) ([]byte, error) {
			r.LegalFile = must(w.registrar.LegalFile(ctx, other)).Sealed
			return real.TakeStep(ctx, r)
		},
		"by another": func(ctx context.Context, r server.StepRequest, _ server.Sealer) ([]byte, error) {
			return w.pool.registrar.SealStep(ctx, r.LegalFile, r.Step)
		},
		"signed by a stranger": func(_ context.Context, r server.StepRequest, _ server.Sealer) ([]byte, error) {
			f := must(w.pool.keys.LegalFile(r.LegalFile))
			f = must(authz.Apply(f, r.Step, authz.Actor{Kind: authz.BySupplier, Name: w.a.gln.String()}, time.Now(), w.profile.Location()))
			return authz.Seal(f.Payload(), newSigner())
		},
	} {
		w.tap.seal = seal
		r := w.post(w.a, w.token(w.a), "/v1/consents", w.form(e, nil))
		if r.status != 500 || r.problem(t) != "evidence-invalid" {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
		if rec := w.lastRecord(); rec.Operation != audit.ConsentStep || rec.Outcome != audit.Failed || rec.FileVersion != 0 {
			t.Errorf("%s: record %+v", name, rec)
		}
		w.stands(e, 3, "")
	}
}

// A client that goes away once the step is being sealed does not stop it.
func TestStepOutlivesItsClient(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.tap.seal = func(ctx context.Context, r server.StepRequest, real server.Sealer) ([]byte, error) {
		cancel()
		time.Sleep(200 * time.Millisecond)
		return real.TakeStep(ctx, r)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/v1/consents", nil)
	if err != nil {
		t.Fatal(err)
	}
	w.posting(w.token(w.a), w.form(e, nil))(req)
	if resp, err := w.http(w.a.cert).Do(req); err == nil {
		resp.Body.Close()
		t.Errorf("answered %d", resp.StatusCode)
	}
	for range 500 {
		if recs := w.records(); len(recs) > 0 {
			if len(recs) != 1 || recs[0].Outcome != audit.Given {
				t.Errorf("records %+v", recs)
			}
			w.stands(e, 4, "1")
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the step was not stored")
}

// PostgreSQL stops in the middle, and comes back.
func TestStepWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	conf := devpg.Config{Dir: pgtest.Dir(t), NoSync: true}
	cluster := pgtest.Cluster(t, conf)
	w := newWorld(t, options{db: clusterDB{cluster}, timeout: 5 * time.Second})
	e := w.customer(1, w.a)
	key := newKey()
	send := func() reply { return w.post(w.a, w.token(w.a), "/v1/consents", w.form(e, nil), "Idempotency-Key", key) }
	w.token(w.a)
	w.tap.store = func(ctx context.Context, n server.NewStep, real server.Steps) error {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := cluster.Stop(stop); err != nil {
			t.Error(err)
		}
		return real.Store(ctx, n)
	}
	if r := send(); r.status != 503 || r.problem(t) != "database-unavailable" {
		t.Errorf("away while storing: %d %s", r.status, r.body)
	}
	w.tap.store = nil
	if r := send(); r.status != 503 || r.problem(t) != "database-unavailable" {
		t.Errorf("away: %d %s", r.status, r.body)
	}
	pgtest.Cluster(t, conf)
	deadline := time.Now().Add(10 * time.Second)
	r := send()
	for r.status != 201 && time.Now().Before(deadline) {
		time.Sleep(100 * time.Millisecond)
		r = send()
	}
	w.consentOf(r, 201)
	w.stands(e, 4, "1")
}

// With the cryptoservers gone steps are refused, and reads of consents are not.
func TestStepWithoutCryptoservers(t *testing.T) {
	t.Parallel()
	p, err := startPool(t, hsmtest.New(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	w := newWorld(t, options{pool: p, timeout: 3 * time.Second})
	e := w.customer(1, w.a)
	k, tag := w.request(w.a, e, nil)
	if err := p.stops[0](); err != nil {
		t.Error(err)
	}
	second, _ := w.request(w.a, e, form{"evidence": "with one of two"})
	token := w.token(w.a)
	if err := p.stops[1](); err != nil {
		t.Error(err)
	}
	r := w.post(w.a, token, "/v1/consents/"+k.Id.String()+"/revoke", nil, "If-Match", tag)
	if r.status != 503 && r.status != 504 || r.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", r.status, r.body)
	}
	if got := w.consentOf(w.get(w.a, "/v1/consents/"+second.Id.String()), 200); got.State != client.ConsentStateREQUESTED {
		t.Errorf("%+v", got)
	}
}
