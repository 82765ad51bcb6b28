package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/internal/audit"
	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/internal/testing/stafftest"
	"kluis/meter"
	openapi "kluis/openapi/client"
	"kluis/server"
)

// registerTap is the tap on server.Register.
type registerTap struct {
	server.Register
	tap *tap
}

func (p registerTap) Supplier(ctx context.Context, gln meter.GLN) (*server.StoredSupplier, error) {
	p.tap.note("record-of")
	if p.tap.register != nil {
		if err := p.tap.register(ctx); err != nil {
			return nil, err
		}
	}
	return p.Register.Supplier(ctx, gln)
}

func (p registerTap) Store(ctx context.Context, s *authz.Supplier, sealed []byte, r audit.Record) error {
	p.tap.note("keep")
	real := func(ctx context.Context) error { return p.Register.Store(ctx, s, sealed, r) }
	if p.tap.keep != nil {
		return p.tap.keep(ctx, real)
	}
	return real(ctx)
}

func (p *tap) TakeSupplierStep(ctx context.Context, r server.SupplierStepRequest) ([]byte, error) {
	p.note("seal")
	if p.suspend != nil {
		return p.suspend(ctx, r, p.Sealer)
	}
	return p.Sealer.TakeSupplierStep(ctx, r)
}

func oversee() authz.Errand { return authz.Errand{Kind: authz.ErrandOversee, Reason: "weekly look"} }

func supplierErrand(s *supplier, suspend bool) authz.Errand {
	return authz.Errand{Kind: authz.ErrandSupplier, Supplier: s.gln, Suspend: suspend, Reason: "ticket 12"}
}

func stepName(suspend bool) string {
	if suspend {
		return "suspend"
	}
	return "resume"
}

// switches has a supervisor suspend a supplier, or resume it.
func (w *world) switches(s *supplier, suspend bool, version int) reply {
	w.t.Helper()
	token := w.staffToken("super-1", authz.Supervisor, supplierErrand(s, suspend))
	return w.post(w.portal, token, "/v1/suppliers/"+s.gln.String()+"/"+stepName(suspend), nil, "Idempotency-Key", "", "If-Match", fmt.Sprintf("%q", fmt.Sprint(version)))
}

func (w *world) switchedTo(r reply, suspended bool, version int) openapi.Supplier {
	w.t.Helper()
	var a openapi.SupplierAnswer
	if err := json.Unmarshal(r.body, &a); err != nil || r.status != 200 || a.Supplier.Suspended != suspended || a.Supplier.Version != version || r.header.Get("ETag") != fmt.Sprintf("%q", fmt.Sprint(version)) {
		w.t.Fatalf("%d %s %s", r.status, r.header.Get("ETag"), r.body)
	}
	return a.Supplier
}

// refetch is the supplier's own look at its newest record, as the issuer has it.
func (w *world) refetch(s *supplier) {
	w.t.Helper()
	var err error
	if s.record, err = w.registrar.Supplier(w.t.Context(), s.gln); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) versions(s *supplier) int {
	w.t.Helper()
	var n int
	if err := w.owner().QueryRow(`SELECT count(*) FROM supplier WHERE gln = $1`, s.gln.Int64()).Scan(&n); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// TestListSuppliers: what supervisors and auditors see of the suppliers, and that
// they looked.
func TestListSuppliers(t *testing.T) {
	t.Parallel()
	var limits config.Limits
	limits.RequestsPerSecond, limits.Burst = 5e5, 4e5
	w := newWorld(t, options{limits: limits})
	zone := w.profile.Location()
	midnight := meter.DayOf(time.Now(), zone).Start(zone)
	revokedAt := time.Now().Add(-time.Hour).UTC()
	w.register(w.b, func(f *authz.SupplierFacts) {
		f.Name, f.Suspended, f.Certificates[0].RevokedAt = "Beta", true, revokedAt
	})
	hour := func(at time.Time, given, refused, failed int) {
		w.sql(`INSERT INTO access_hour (gln, employee, at, requests, given, refused, failed, points, off_hours, last_at) VALUES ($1, '', $2, $3, $4, $5, $6, 0, 0, $7)`,
			w.a.gln.Int64(), at, given+refused+failed, given, refused, failed, at.Add(30*time.Second))
	}
	hour(midnight.Add(-time.Hour), 1000, 0, 0)
	hour(midnight, 5, 2, 1)
	for role, who := range map[authz.Role]string{authz.Supervisor: "super-1", authz.Auditor: "dpo"} {
		r := w.asStaff(w.staffToken(who, role, oversee()), "/v1/suppliers")
		var list openapi.Suppliers
		if err := json.Unmarshal(r.body, &list); err != nil || r.status != 200 || r.header.Get("Cache-Control") != "no-store" || time.Since(list.At) > time.Minute {
			t.Fatalf("%d %s", r.status, r.body)
		}
		if !slices.IsSortedFunc(list.Suppliers, func(a, b openapi.Supplier) int { return strings.Compare(a.Gln, b.Gln) }) {
			t.Error("not in order")
		}
		find := func(s *supplier) openapi.Supplier {
			i := slices.IndexFunc(list.Suppliers, func(x openapi.Supplier) bool { return x.Gln == s.gln.String() })
			if i < 0 {
				t.Fatalf("%s is missing", s.gln)
			}
			return list.Suppliers[i]
		}
		print := w.a.thumbprint()
		a, b, own := find(w.a), find(w.b), find(w.portal)
		if a.Name != "Supplier" || a.Suspended || a.Version != 1 || len(a.Certificates) != 1 || a.Certificates[0].Thumbprint != hex.EncodeToString(print[:]) ||
			!a.Certificates[0].NotAfter.Equal(w.a.cert.Leaf.NotAfter) || a.Certificates[0].RevokedAt != nil || len(a.Scopes) != 2 ||
			a.Quota != (openapi.SupplierQuota{PerSecond: 5e5, Burst: 4e5}) || a.Today != (openapi.SupplierToday{Requests: 8, Given: 5, Refused: 2, Failed: 1}) ||
			a.LastRequestAt == nil || !a.LastRequestAt.Equal(midnight.Add(30*time.Second)) {
			t.Errorf("%+v", a)
		}
		if b.Name != "Beta" || !b.Suspended || b.Version != 2 || b.Certificates[0].RevokedAt == nil || !b.Certificates[0].RevokedAt.Equal(revokedAt.Truncate(time.Second)) ||
			b.Today != (openapi.SupplierToday{}) || b.LastRequestAt != nil {
			t.Errorf("%+v", b)
		}
		if !slices.Equal(own.Scopes, []string{authn.ScopeStaff}) {
			t.Errorf("%+v", own)
		}
		if rec := w.lastRecord(); rec.Operation != audit.Oversee || rec.Outcome != audit.Given || rec.Employee != stafftest.Subject(who) || !rec.EAN.IsZero() {
			t.Errorf("%+v", rec)
		}
	}
	before := len(w.records())
	for name, r := range map[string]reply{
		"an agent":       w.asStaff(w.staffToken("agent-1", authz.Agent, oversee()), "/v1/suppliers"),
		"a supplier":     w.get(w.a, "/v1/suppliers"),
		"another errand": w.asStaff(w.staffToken("super-1", authz.Supervisor, supplierErrand(w.a, true)), "/v1/suppliers"),
	} {
		if r.status != 403 {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
	if n := len(w.records()); n != before {
		t.Errorf("%d records", n-before)
	}
	// A record in a row of another version is told as damaged, not left out.
	token := w.staffToken("super-1", authz.Supervisor, oversee())
	w.sql(`INSERT INTO supplier (gln, version, record, sealed_at) SELECT gln, version + 1, record, sealed_at FROM supplier WHERE gln = $1 ORDER BY version DESC LIMIT 1`, w.b.gln.Int64())
	var list openapi.Suppliers
	r := w.asStaff(token, "/v1/suppliers")
	if err := json.Unmarshal(r.body, &list); err != nil || r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	for _, s := range list.Suppliers {
		if damaged := s.Damaged != nil && *s.Damaged; damaged != (s.Gln == w.b.gln.String()) || damaged && (s.Version != 3 || s.Name != "") {
			t.Errorf("%+v", s)
		}
	}
}

// TestSuspendSupplier: a supplier that reads without a pause is refused right
// after the answer to the suspension, gets no token, and reads again once it is
// resumed. Who did it is in its record, and in the access log.
func TestSuspendSupplier(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	w.fill(e)
	path := w.path(e)
	w.token(w.a)
	var suspended, answered sync.WaitGroup
	suspended.Add(1)
	stop := make(chan struct{})
	var late []int // of requests that began after the answer
	answered.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if r := w.get(w.a, path); r.status == 401 {
				break
			} else if r.status != 200 {
				t.Errorf("before: %d %s", r.status, r.body)
				return
			}
		}
		suspended.Wait()
		for range 5 {
			late = append(late, w.get(w.a, path).status)
		}
	})
	s := w.switchedTo(w.switches(w.a, true, 1), true, 2)
	suspended.Done()
	if s.Gln != w.a.gln.String() || s.Name != "Supplier" {
		t.Errorf("%+v", s)
	}
	if r := w.get(w.a, path); r.status != 401 || r.problem(t) != "unauthenticated" {
		t.Errorf("right after the answer: %d %s", r.status, r.body)
	}
	answered.Wait()
	close(stop)
	if !slices.Equal(late, []int{401, 401, 401, 401, 401}) {
		t.Errorf("%v", late)
	}
	var rec audit.Record
	for _, r := range w.records() {
		if r.Operation == audit.SupplierStep {
			rec = r
		}
	}
	w.refetch(w.a)
	record := must(w.pool.keys.Supplier(w.a.record))
	who := authz.Actor{Kind: authz.ByEmployee, Name: stafftest.Subject("super-1")}
	if rec.Outcome != audit.Given || rec.Target != w.a.gln || !rec.Suspend || rec.TargetVersion != 2 || rec.TargetDigest != record.Digest() || rec.Employee != who.Name ||
		rec.Reason != "ticket 12" || rec.Supplier != w.portal.gln || record.Actor() != who || !record.Suspended() {
		t.Errorf("%+v, by %v", rec, record.Actor())
	}
	if _, _, err := w.pool.issuer.SignToken(t.Context(), w.a.record, w.a.thumbprint(), []string{authn.ScopeReadings}, time.Minute); !errors.Is(err, client.ErrSupplierRefused) {
		t.Errorf("a token: %v", err)
	}

	// As it is already: nothing new, whatever is said of the version.
	for _, version := range []int{2, 1} {
		w.switchedTo(w.switches(w.a, true, version), true, 2)
		if rec := w.lastRecord(); rec.Outcome != audit.Given || rec.TargetVersion != 2 || rec.TargetDigest != record.Digest() {
			t.Errorf("%+v", rec)
		}
	}
	if n := w.versions(w.a); n != 2 {
		t.Errorf("%d versions", n)
	}
	w.switchedTo(w.switches(w.a, false, 2), false, 3)
	if r := w.get(w.a, path); r.status != 200 {
		t.Errorf("resumed: %d %s", r.status, r.body)
	}
	if text := w.log.String(); strings.Contains(text, "super-1") || strings.Contains(text, "ticket 12") {
		t.Error("the log names the employee, or the reason")
	}
}

// TestSuspensionEndsAStream: what is on its way stops at the next batch.
func TestSuspensionEndsAStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	eans := w.customers(w.a, 12)
	done := make(chan struct{})
	w.tapSupplier(func(n int) { // the third: the caller, the first batch, the second
		if n == 3 {
			<-done
		}
	})
	token := w.token(w.a)
	w.batches.records = func(r []audit.Record, real func() error) error {
		err := real()
		if r[0].EAN == eans[0] {
			// The supervisor's request looks at the operator's record, not at this one's.
			w.tapSupplier(nil)
			w.switchedTo(w.switches(w.a, true, 1), true, 2)
			close(done)
		}
		return err
	}
	s := w.stored(w.a, w.asks(asking{"meteringPoints": texts(eans)}))
	end := s.part(nil)
	if end == nil || slugOf(end) != "unauthenticated" || len(s.points) >= 12 {
		t.Fatalf("after %d metering points: %s", len(s.points), slugOf(end))
	}
	w.batches.reset()
	w.a.raw = token
	resp := w.send(w.a, "application/x-ndjson", bytes.NewReader(must(json.Marshal(w.asks(asking{"meteringPoints": texts(eans), "cursor": s.cursor})))), nil)
	resp.Body.Close()
	if resp.StatusCode != 401 {
		t.Errorf("suspended, and answered %d", resp.StatusCode)
	}
}

// TestSuspendRefusals: nobody suspends or resumes but a supervisor sent for that
// very supplier and step, on the record as it is.
func TestSuspendRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	staff := func(role authz.Role, e authz.Errand) string { return w.staffToken("super-1", role, e) }
	suspend := staff(authz.Supervisor, supplierErrand(w.a, true))
	nobody := &supplier{gln: must(meter.ParseGLN(w.gln(77)))}
	path := func(s *supplier, step string) string { return "/v1/suppliers/" + s.gln.String() + "/" + step }
	before := len(w.records())
	recorded := 0
	for _, c := range []struct {
		name    string
		who     *supplier
		token   string
		path    string
		tag     string
		status  int
		problem string
		outcome audit.Outcome // 0: there is no record
	}{
		{"another supplier", w.portal, suspend, path(w.b, "suspend"), `"1"`, 403, "not-permitted", audit.Refused},
		{"the other step", w.portal, suspend, path(w.a, "resume"), `"1"`, 403, "not-permitted", audit.Refused},
		{"the operator's own", w.portal, staff(authz.Supervisor, supplierErrand(w.portal, true)), path(w.portal, "suspend"), `"1"`, 403, "not-permitted", audit.Refused},
		{"another version", w.portal, suspend, path(w.a, "suspend"), `"2"`, 412, "precondition-failed", audit.Refused},
		{"a weak tag", w.portal, suspend, path(w.a, "suspend"), `W/"1"`, 412, "precondition-failed", audit.Refused},
		{"nobody", w.portal, staff(authz.Supervisor, supplierErrand(nobody, true)), path(nobody, "suspend"), `"1"`, 404, "supplier-not-found", audit.NoRelation},
		{"no tag", w.portal, suspend, path(w.a, "suspend"), "", 428, "precondition-required", 0},
		{"no tag at all", w.portal, suspend, path(w.a, "suspend"), "1", 400, "invalid-parameters", 0},
		{"no GLN", w.portal, suspend, "/v1/suppliers/8712423005609/suspend", `"1"`, 400, "invalid-parameters", 0},
		{"an errand to oversee", w.portal, staff(authz.Supervisor, oversee()), path(w.a, "suspend"), `"1"`, 403, "not-permitted", 0},
		{"an agent", w.portal, staff(authz.Agent, oversee()), path(w.a, "suspend"), `"1"`, 403, "not-permitted", 0},
		{"an auditor", w.portal, staff(authz.Auditor, oversee()), path(w.a, "suspend"), `"1"`, 403, "not-permitted", 0},
		{"a supplier, of itself", w.a, w.token(w.a), path(w.a, "suspend"), `"1"`, 403, "not-permitted", 0},
		{"a supplier, of another", w.a, w.token(w.a), path(w.b, "suspend"), `"1"`, 403, "not-permitted", 0},
		{"with a supplier's certificate", w.b, suspend, path(w.a, "suspend"), `"1"`, 401, "unauthenticated", 0},
		{"nobody's token", w.portal, "x", path(w.a, "suspend"), `"1"`, 401, "unauthenticated", 0},
	} {
		r := w.post(c.who, c.token, c.path, nil, "Idempotency-Key", "", "If-Match", c.tag)
		if r.status != c.status || r.problem(t) != c.problem {
			t.Errorf("%s: %d %s", c.name, r.status, r.body)
		}
		if c.outcome != 0 {
			recorded++
			if rec := w.lastRecord(); rec.Operation != audit.SupplierStep || rec.Outcome != c.outcome || rec.TargetVersion != 0 || !strings.Contains(c.path, rec.Target.String()) {
				t.Errorf("%s: %+v", c.name, rec)
			}
		}
	}
	if n := len(w.records()) - before; n != recorded {
		t.Errorf("%d records, want %d", n, recorded)
	}
	for _, s := range []*supplier{w.a, w.b, w.portal} {
		if n := w.versions(s); n != 1 {
			t.Errorf("%d versions of %s", n, s.gln)
		}
	}
	if r := w.do(w.portal.client, http.MethodPost, path(w.a, "suspend"), w.posting(suspend, "{}", "Idempotency-Key", "", "If-Match", `"1"`)); r.status != 413 {
		t.Errorf("with a body: %d", r.status)
	}
	w.switchedTo(w.post(w.portal, suspend, path(w.a, "suspend"), nil, "Idempotency-Key", "", "If-Match", `"7", "1"`), true, 2)

	// What the registrar suspended, the registrar alone resumes.
	w.register(w.b, func(f *authz.SupplierFacts) { f.Suspended = true })
	r := w.switches(w.b, false, 2)
	if rec := w.lastRecord(); r.status != 403 || r.problem(t) != "not-permitted" || !strings.Contains(string(r.body), "the registrar alone resumes it") ||
		rec.Operation != audit.SupplierStep || rec.Outcome != audit.Refused || rec.Target != w.b.gln || w.versions(w.b) != 2 {
		t.Errorf("%d %s %+v, %d versions", r.status, r.body, rec, w.versions(w.b))
	}
}

// TestReplayedSuspension: a captured gateway has a supervisor's token, and records
// that count no more; neither undoes what another supervisor did since.
func TestReplayedSuspension(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.switchedTo(w.switches(w.a, true, 1), true, 2)
	first := must(w.registrar.Supplier(t.Context(), w.a.gln))
	var caught server.SupplierStepRequest
	w.tap.suspend = func(ctx context.Context, r server.SupplierStepRequest, real server.Sealer) ([]byte, error) {
		caught = r
		return real.TakeSupplierStep(ctx, r)
	}
	w.switchedTo(w.switches(w.a, false, 2), false, 3)
	resumed := must(w.registrar.Supplier(t.Context(), w.a.gln))
	time.Sleep(1100 * time.Millisecond) // a token says when it was issued in whole seconds
	w.tap.suspend = nil
	w.switchedTo(w.switches(w.a, true, 3), true, 4)
	current := must(w.registrar.Supplier(t.Context(), w.a.gln))

	for name, previous := range map[string][]byte{"on the record as it is": current, "on the one before": resumed, "on the first suspension": first} {
		r := caught
		r.Previous = previous
		sealed, err := w.tap.Sealer.TakeSupplierStep(t.Context(), r)
		if name == "on the first suspension" && err == nil {
			// Sealed once more, it is another version of what there is already.
			record := must(w.pool.keys.Supplier(sealed))
			for _, version := range []uint64{record.Version(), 5} {
				if err := w.asGateway(`INSERT INTO supplier (gln, version, record, sealed_at) VALUES ($1, $2, $3, now())`, w.a.gln.Int64(), int64(version), sealed); err == nil {
					t.Errorf("stored as version %d", version)
				}
			}
			continue
		}
		if err == nil {
			t.Errorf("%s: resumed again", name)
		}
	}
	if r := w.post(w.portal, caught.Token, "/v1/suppliers/"+w.a.gln.String()+"/resume", nil, "Idempotency-Key", "", "If-Match", `"4"`); r.status != 403 || !strings.Contains(string(r.body), "new token") {
		t.Errorf("the token again: %d %s", r.status, r.body)
	}
	if r := w.get(w.a, w.path(w.ean(1))); r.status != 401 {
		t.Errorf("the supplier: %d %s", r.status, r.body)
	}
	if n := w.versions(w.a); n != 4 {
		t.Errorf("%d versions", n)
	}
}

// TestTwoSuspendAtOnce: both are answered, and it is done once.
func TestTwoSuspendAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	var barrier sync.WaitGroup // both have read the record before either goes on
	barrier.Add(2)
	w.tap.suspend = func(ctx context.Context, r server.SupplierStepRequest, real server.Sealer) ([]byte, error) {
		barrier.Done()
		barrier.Wait()
		return real.TakeSupplierStep(ctx, r)
	}
	tokens := []string{
		w.staffToken("super-1", authz.Supervisor, supplierErrand(w.a, true)), w.staffToken("super-2", authz.Supervisor, supplierErrand(w.a, true)),
	}
	w.portal.client = w.http(w.portal.cert)
	for _, r := range together(2, func(i int) reply {
		return w.post(w.portal, tokens[i], "/v1/suppliers/"+w.a.gln.String()+"/suspend", nil, "Idempotency-Key", "", "If-Match", `"1"`)
	}) {
		w.switchedTo(r, true, 2)
	}
	if n := w.versions(w.a); n != 2 {
		t.Errorf("%d versions", n)
	}
	given := 0
	for _, r := range w.records() {
		if r.Operation == audit.SupplierStep && r.Outcome == audit.Given && r.TargetVersion == 2 {
			given++
		}
	}
	if given != 2 {
		t.Errorf("%d records", given)
	}
}

// TestSuspendFaults: whatever fails on the way, nothing is half stored, what is
// answered is true, and sent again it is done once.
func TestSuspendFaults(t *testing.T) {
	t.Parallel()
	type sealing = func(context.Context, server.SupplierStepRequest, server.Sealer) ([]byte, error)
	failing := func(err error) func(*tap) {
		return func(p *tap) {
			p.suspend = sealing(func(context.Context, server.SupplierStepRequest, server.Sealer) ([]byte, error) { return nil, err })
		}
	}
	w := newWorld(t, options{})
	version := 1
	for _, tc := range []struct {
		name    string
		fault   func(*tap)
		status  int
		problem string
		stored  bool
		records int
	}{
		{"the record cannot be read", func(p *tap) { p.register = func(context.Context) error { return errFault } }, 503, "database-unavailable", false, 0},
		{"reading it hangs", func(p *tap) { p.register = hang }, 504, "deadline-exceeded", false, 0},
		{"no cryptoserver", failing(fmt.Errorf("%w: gone", server.ErrNoCryptoserver)), 503, "sealing-unavailable", false, 1},
		{"a cryptoserver fails", failing(errFault), 500, "internal-error", false, 1},
		{"a cryptoserver hangs", func(p *tap) {
			p.suspend = func(ctx context.Context, _ server.SupplierStepRequest, _ server.Sealer) ([]byte, error) {
				return nil, hang(ctx)
			}
		}, 504, "deadline-exceeded", false, 1},
		{"the token is refused", failing(server.ErrTokenRefused), 401, "unauthenticated", false, 1},
		{"it is not permitted by its clock", failing(authz.ErrNotPermitted), 403, "not-permitted", false, 1},
		{"the evidence is refused, every time", failing(server.ErrEvidenceRefused), 500, "evidence-invalid", false, 1},
		{"another supplier's record is sealed", func(p *tap) {
			p.suspend = func(context.Context, server.SupplierStepRequest, server.Sealer) ([]byte, error) {
				return w.b.record, nil
			}
		}, 500, "evidence-invalid", false, 1},
		{"nothing that verifies is sealed", func(p *tap) {
			p.suspend = func(context.Context, server.SupplierStepRequest, server.Sealer) ([]byte, error) {
				return []byte("x"), nil
			}
		}, 500, "evidence-invalid", false, 1},
		{"sealed, and the answer is lost", func(p *tap) {
			p.suspend = func(ctx context.Context, r server.SupplierStepRequest, real server.Sealer) ([]byte, error) {
				_, err := real.TakeSupplierStep(ctx, r)
				return nil, errors.Join(err, server.ErrNoCryptoserver)
			}
		}, 503, "sealing-unavailable", false, 1},
		{"storing fails and did not persist", func(p *tap) {
			p.keep = func(context.Context, func(context.Context) error) error { return errFault }
		}, 503, "database-unavailable", false, 1},
		{"storing fails but persisted", func(p *tap) {
			p.keep = func(ctx context.Context, real func(context.Context) error) error {
				return errors.Join(real(ctx), errFault)
			}
		}, 503, "database-unavailable", true, 1},
		{"the access record cannot be written", func(p *tap) {
			p.suspend = func(context.Context, server.SupplierStepRequest, server.Sealer) ([]byte, error) {
				return nil, server.ErrNoCryptoserver
			}
			p.record = func(context.Context, audit.Record, server.Recorder) error { return errFault }
		}, 503, "sealing-unavailable", false, 0},
	} {
		suspend := version%2 == 1
		before := len(w.records())
		tc.fault(w.tap)
		r := w.switches(w.a, suspend, version)
		w.tap.register, w.tap.suspend, w.tap.keep, w.tap.record = nil, nil, nil, nil
		if r.status != tc.status || r.problem(t) != tc.problem {
			t.Errorf("%s: %d %s", tc.name, r.status, r.body)
		}
		if n := len(w.records()) - before; n != tc.records {
			t.Errorf("%s: %d records", tc.name, n)
		}
		if n := w.versions(w.a); n != version && !tc.stored || n != version+1 && tc.stored {
			t.Errorf("%s: %d versions, there were %d", tc.name, n, version)
		}
		// Sent again, with the version as it was.
		w.switchedTo(w.switches(w.a, suspend, version), suspend, version+1)
		version++
	}
	if n := w.versions(w.a); n != version {
		t.Errorf("%d versions, want %d", n, version)
	}
	// The registrar is faster: it is another record then.
	w.refetch(w.a)
	w.tap.suspend = func(ctx context.Context, r server.SupplierStepRequest, real server.Sealer) ([]byte, error) {
		w.tap.suspend = nil
		w.register(w.a, func(f *authz.SupplierFacts) { f.Name, f.Suspended = "Renamed", version%2 == 0 })
		return real.TakeSupplierStep(ctx, r)
	}
	if r := w.switches(w.a, version%2 == 1, version); r.status != 412 || r.problem(t) != "precondition-failed" {
		t.Errorf("changed by the registrar meanwhile: %d %s", r.status, r.body)
	}
}

// TestGetOperations: how the parts fare, told to every employee; one that is away
// is DOWN and keeps nobody waiting.
func TestGetOperations(t *testing.T) {
	t.Parallel()
	pool := *shared.get(t)
	pool.addresses = append(slices.Clone(pool.addresses), "127.0.0.1:1") // where nobody listens
	w := newWorld(t, options{pool: &pool})
	e := w.customer(1, w.a)
	w.fill(e)
	w.sql(`INSERT INTO audit_checkpoint (size, note) VALUES (5, convert_to($1, 'UTF8'))`,
		"kluis.test/audit\n5\n"+strings.Repeat("A", 43)+"=\n2026-03-01T10:00:00.000000Z\n\n— kluis.test/audit x\n")
	for _, role := range []authz.Role{authz.Agent, authz.Supervisor, authz.Auditor} {
		r := w.asStaff(w.staffToken("somebody", role, oversee()), "/v1/operations")
		var o openapi.Operations
		if err := json.Unmarshal(r.body, &o); err != nil || r.status != 200 || r.header.Get("Cache-Control") != "no-store" {
			t.Fatalf("%d %s", r.status, r.body)
		}
		if o.Database.Status != openapi.PartUp || len(o.Cryptoservers) != 3 || o.Gateway.Version == "" || time.Since(o.Gateway.StartedAt) > 10*time.Minute || time.Since(o.At) > time.Minute {
			t.Errorf("%s", r.body)
		}
		for i, c := range o.Cryptoservers[:2] {
			if c.Name != fmt.Sprintf("cryptoserver-%d", i+1) || c.Status != openapi.PartUp || c.ServerId == nil || *c.ServerId != c.Name || c.Version == nil || *c.Version != "test" ||
				c.Roles == nil || !slices.Contains(*c.Roles, "open") || c.ControlAt == nil || c.StartedAt == nil || c.Receipts == nil || c.Tokens == nil || len(*c.Tokens) == 0 {
				t.Errorf("%+v", c)
			}
		}
		if c := o.Cryptoservers[2]; c.Status != openapi.PartDown || c.ServerId != nil || c.Tokens != nil || c.Roles != nil {
			t.Errorf("%+v", c)
		}
		if o.Checkpoint == nil || o.Checkpoint.Size != 5 || !o.Checkpoint.SignedAt.Equal(time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)) {
			t.Errorf("%+v", o.Checkpoint)
		}
		if o.Ingest == nil || o.Ingest.LastStoredAt == nil || time.Since(*o.Ingest.LastStoredAt) > 10*time.Minute || o.Ingest.LastCompleteDay.String() != (meter.DayOf(time.Now(), w.profile.Location())-1).String() {
			t.Errorf("%+v", o.Ingest)
		}
		if rec := w.lastRecord(); rec.Operation != audit.Oversee || rec.Outcome != audit.Given || rec.Reason != "weekly look" {
			t.Errorf("%+v", rec)
		}
		if strings.Contains(string(r.body), "127.0.0.1") {
			t.Error("an address is told")
		}
	}
	if r := w.get(w.a, "/v1/operations"); r.status != 403 {
		t.Errorf("a supplier: %d", r.status)
	}
	// Nothing is shown that is not recorded.
	w.tap.record = func(context.Context, audit.Record, server.Recorder) error { return errFault }
	if r := w.asStaff(w.staffToken("somebody", authz.Agent, oversee()), "/v1/operations"); r.status != 503 || r.problem(t) != "record-not-written" {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestOneEmployeeStopsNobody: an employee who asks for all there is keeps neither a
// supervisor from stopping a supplier, nor others from their work.
func TestOneEmployeeStopsNobody(t *testing.T) {
	t.Parallel()
	var limits config.Limits
	limits.RequestsPerSecond, limits.Burst = 0.01, 10
	w := newWorld(t, options{limits: limits})
	e := w.customer(1, w.a)
	path := "/v1/metering-points/" + e.String() + "/connection"
	agent := w.view(e, authz.Agent)
	got := map[int]int{}
	for range 12 {
		got[w.asStaff(agent, path).status]++
	}
	if got[200] != 5 || got[429] != 7 {
		t.Errorf("one employee: %v, want half of the operator's quota", got)
	}
	other := w.staffToken("agent-18", authz.Agent, authz.Errand{Kind: authz.ErrandView, EAN: e, Reason: "another call"})
	if r := w.asStaff(other, path); r.status != 200 {
		t.Errorf("another employee: %d %s", r.status, r.body)
	}
	for w.asStaff(other, path).status == 200 { // now all of the quota is used up
	}
	if r := w.switches(w.a, true, 1); r.status != 200 {
		t.Errorf("a supervisor stops a supplier: %d %s", r.status, r.body)
	}
}

// TestDamagedSupplier: a row that does not verify, which the gateway's own role can
// put there, shows as such, is counted, and hides no other supplier, nor keeps it
// from being stopped.
func TestDamagedSupplier(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	token := w.staffToken("super-1", authz.Supervisor, oversee())
	list := func() map[string]openapi.Supplier {
		t.Helper()
		r := w.asStaff(token, "/v1/suppliers")
		var got openapi.Suppliers
		if err := json.Unmarshal(r.body, &got); err != nil || r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		out := map[string]openapi.Supplier{}
		for _, s := range got.Suppliers {
			out[s.Gln] = s
		}
		return out
	}
	before := list()
	// The next version, as the trigger wants it, without a seal of anybody.
	if err := w.asGateway(`INSERT INTO supplier (gln, version, record, sealed_at)
		SELECT gln, 2, overlay(overlay(overlay(overlay(record PLACING int8send(2) FROM 29+28) PLACING '\x04' FROM 29+76)
			PLACING sha256(substring(record FROM 30 FOR ((get_byte(record,25)::bigint<<24)|(get_byte(record,26)<<16)|(get_byte(record,27)<<8)|get_byte(record,28))::int)) FROM 29+44)
			PLACING '\x00' FROM octet_length(record)), now()
		FROM supplier WHERE gln = $1 AND version = 1`, w.b.gln.Int64()); err != nil {
		t.Fatal(err)
	}
	after := list()
	b := after[w.b.gln.String()]
	if b.Damaged == nil || !*b.Damaged || b.Name != "" || b.Version != 2 || len(b.Certificates) != 0 || len(b.Scopes) != 0 || b.Suspended {
		t.Errorf("%+v", b)
	}
	delete(before, w.b.gln.String())
	delete(after, w.b.gln.String())
	if !reflect.DeepEqual(after, before) || len(after) < 2 {
		t.Errorf("the others are %+v, were %+v", after, before)
	}
	if n := w.metric("kluis_gateway_evidence_invalid_total", "kind", "supplier"); n < 1 {
		t.Errorf("counted %v times", n)
	}
	if r := w.switches(w.b, true, 2); r.status != 500 || !strings.Contains(string(r.body), "evidence-invalid") {
		t.Errorf("a step on it: %d %s", r.status, r.body)
	}
	w.switchedTo(w.switches(w.a, true, 1), true, 2)
	if after = list(); !after[w.a.gln.String()].Suspended {
		t.Error("the one that was stopped does not show as such")
	}
}
