package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/internal/testing/stafftest"
	"kluis/meter"
	"kluis/openapi/client"
)

// until is in a year.
var until = sync.OnceValue(func() string { return time.Now().AddDate(1, 0, 0).UTC().Format(time.RFC3339) })

// form is the body of createConsent; nil leaves a member out.
type form map[string]any

func (w *world) form(e meter.EAN, change form) form {
	f := form{
		"ean": e.String(), "purpose": "ENERGY_MANAGEMENT", "classes": []string{"intervals"}, "granularity": "PT15M", "from": "2020-01-01",
		"validUntil": until(), "evidence": "contract-4711",
	}
	for k, v := range change {
		if f[k] = v; v == nil {
			delete(f, k)
		}
	}
	return f
}

// scope is what the form asks for; the test's own making of it.
func (f form) scope(e meter.EAN, supplier meter.GLN) [32]byte {
	to, _ := f["to"].(string)
	return sha256.Sum256([]byte(strings.Join([]string{
		"kluis/consent-scope/1", e.String(), supplier.String(), f["purpose"].(string), strings.Join(f["classes"].([]string), ","),
		f["granularity"].(string), f["from"].(string), to, f["validUntil"].(string), f["evidence"].(string), "",
	}, "\n")))
}

var keys atomic.Int64

// newKey is an idempotency key that no request had yet.
func newKey() string { return fmt.Sprintf("key-%d", keys.Add(1)) }

// post is a request that changes something. body: nil, text, or what is to be
// JSON. headers are pairs; without an Idempotency-Key it gets a new one.
func (w *world) post(who *supplier, token, path string, body any, headers ...string) reply {
	w.t.Helper()
	if who.client == nil {
		who.client = w.http(who.cert)
	}
	return w.do(who.client, http.MethodPost, path, w.posting(token, body, headers...))
}

func (w *world) posting(token string, body any, headers ...string) func(*http.Request) {
	return func(r *http.Request) {
		bearer(token)(r)
		r.Header.Set("Idempotency-Key", newKey())
		if body != nil {
			b, ok := body.(string)
			if !ok {
				b = string(must(json.Marshal(body)))
			}
			r.Header.Set("Content-Type", "application/json")
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(b)), int64(len(b))
		}
		for i := 0; i < len(headers); i += 2 {
			if r.Header.Set(headers[i], headers[i+1]); headers[i+1] == "" {
				r.Header.Del(headers[i])
			}
		}
	}
}

// consentOf takes an answer with a consent apart.
func (w *world) consentOf(r reply, status int) client.Consent {
	w.t.Helper()
	if r.status != status {
		w.t.Fatalf("status %d, want %d: %s", r.status, status, r.body)
	}
	var k client.Consent
	holdsTo(w.t, "Consent", r.body, &k)
	if tag := r.header.Get("ETag"); len(tag) != 18 || r.header.Get("Cache-Control") != "no-store" || r.header.Get("X-Interaction-Id") == "" {
		w.t.Errorf("headers %v", r.header)
	}
	if at := r.header.Get("Location"); status == 201 && at != "/v1/consents/"+k.Id.String() {
		w.t.Errorf("Location %q", at)
	}
	return k
}

// request has the supplier ask for a consent.
func (w *world) request(s *supplier, e meter.EAN, change form) (client.Consent, string) {
	w.t.Helper()
	r := w.post(s, w.token(s), "/v1/consents", w.form(e, change))
	return w.consentOf(r, 201), r.header.Get("ETag")
}

// errandFor is the errand of a step of a consent as an employee saw it.
func errandFor(k client.Consent, action authz.ConsentAction, evidence string) authz.Errand {
	return authz.Errand{
		Kind: authz.ErrandStep, EAN: must(meter.ParseEAN(k.Ean)), Action: action, ConsentID: k.Id,
		Scope: [32]byte(must(base64.RawURLEncoding.DecodeString(k.ScopeDigest))), Evidence: evidence,
	}
}

// answer has an agent take a step of a consent for the customer.
func (w *world) answer(k client.Consent, tag string, action authz.ConsentAction, headers ...string) reply {
	w.t.Helper()
	var body any
	evidence := ""
	if action == authz.ActionGrant {
		evidence = "call-2026-0815"
		body = form{"evidence": evidence}
	}
	token := w.staffToken("agent-17", authz.Agent, errandFor(k, action, evidence))
	return w.post(w.portal, token, "/v1/consents/"+k.Id.String()+"/"+action.String(), body, append([]string{"If-Match", tag}, headers...)...)
}

func (w *world) view(e meter.EAN, role authz.Role) string {
	return w.staffToken("agent-17", role, authz.Errand{Kind: authz.ErrandView, EAN: e})
}

// asStaff is a request with an employee's token.
func (w *world) asStaff(token, path string) reply {
	w.t.Helper()
	if w.portal.client == nil {
		w.portal.client = w.http(w.portal.cert)
	}
	return w.do(w.portal.client, http.MethodGet, path, bearer(token))
}

// stepsOf is the consent's history in words.
func stepsOf(k client.Consent) string {
	var b strings.Builder
	for _, s := range k.Steps {
		fmt.Fprintf(&b, "%s by %s", s.Step, s.By)
		if s.Employee != nil {
			fmt.Fprintf(&b, " (%s)", *s.Employee)
		}
		b.WriteString("; ")
	}
	return strings.TrimSuffix(b.String(), "; ")
}

// gives says whether the supplier reads quarter-hours, and else why not.
func (w *world) gives(s *supplier, e meter.EAN) string {
	w.t.Helper()
	a := w.answerOf(w.get(s, w.path(e, "fields", "import_intervals")))
	if len(a.Withheld) == 0 && len(a.Series) == 1 && string(a.Series[0].LegalBasis) == "CONSENT" {
		return "yes"
	}
	return string(a.Withheld[0].Reason)
}

// A consent from the supplier's request to its end, as the supplier, the
// customer (through customer service) and the database see it.
func TestLifeOfARequestedConsent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	w.fill(e)
	if got := w.gives(w.a, e); got != "NO_CONSENT" {
		t.Fatalf("before: %s", got)
	}

	// Requested: gives nothing yet.
	w.tap.taken()
	started := time.Now().Add(-time.Second)
	f := w.form(e, form{"to": "2036-01-01"})
	r := w.post(w.a, w.token(w.a), "/v1/consents", f)
	k := w.consentOf(r, 201)
	if calls := w.tap.taken(); calls != "supplier key legal-file seal store" {
		t.Errorf("calls %q", calls)
	}
	if k.Ean != e.String() || k.Supplier != w.a.gln.String() || k.State != client.ConsentStateREQUESTED || k.ValidFrom != nil || k.AnswerBy == nil ||
		k.To.String() != "2036-01-01" || k.Evidence != "contract-4711" || stepsOf(k) != "REQUESTED by SUPPLIER" || k.Steps[0].At.Before(started) {
		t.Errorf("%+v", k)
	}
	if want := meter.DayOf(time.Now(), w.profile.Location()) + 31; !k.AnswerBy.Equal(want.Start(w.profile.Location())) {
		t.Errorf("answer by %s", k.AnswerBy)
	}
	if scope := f.scope(e, w.a.gln); k.ScopeDigest != base64.RawURLEncoding.EncodeToString(scope[:]) {
		t.Errorf("scope digest %s", k.ScopeDigest)
	}
	if k.Id.Version() != 8 || k.Id.Variant() != uuid.RFC4122 {
		t.Errorf("id %s", k.Id)
	}
	rec := w.lastRecord()
	if rec.Operation != audit.ConsentStep || rec.Outcome != audit.Given || rec.Action != authz.ActionRequest || rec.ConsentID != k.Id ||
		rec.EAN != e || rec.FileVersion != 4 || rec.Supplier != w.a.gln || rec.Employee != "" || rec.Purpose != meter.EnergyManagement {
		t.Errorf("record %+v", rec)
	}
	if got := w.gives(w.a, e); got != "NO_CONSENT" {
		t.Errorf("requested: %s", got)
	}

	// Seen by the employee, and granted. The tag is the same for both.
	agent := w.asStaff(w.view(e, authz.Agent), "/v1/consents/"+k.Id.String())
	seen := w.consentOf(agent, 200)
	if agent.header.Get("ETag") != r.header.Get("ETag") {
		t.Errorf("tag %s, the supplier's %s", agent.header.Get("ETag"), r.header.Get("ETag"))
	}
	if seen.ScopeDigest != k.ScopeDigest || seen.State != client.ConsentStateREQUESTED {
		t.Errorf("%+v", seen)
	}
	r = w.answer(seen, agent.header.Get("ETag"), authz.ActionGrant)
	k = w.consentOf(r, 200)
	if k.State != client.ConsentStateACTIVE || k.ValidFrom == nil || k.AnswerBy != nil ||
		stepsOf(k) != "REQUESTED by SUPPLIER; GRANTED by CUSTOMER ("+stafftest.Subject("agent-17")+")" {
		t.Errorf("%+v", k)
	}
	if rec = w.lastRecord(); rec.Action != authz.ActionGrant || rec.Outcome != audit.Given || rec.Employee != stafftest.Subject("agent-17") ||
		rec.Reason != "customer on the line" || rec.Supplier != w.portal.gln || rec.FileVersion != 5 {
		t.Errorf("record %+v", rec)
	}
	if got := w.gives(w.a, e); got != "yes" {
		t.Errorf("granted: %s", got)
	}

	// What the supplier sees, alone and in the list.
	r = w.get(w.a, "/v1/consents/"+k.Id.String())
	mine := w.consentOf(r, 200)
	if stepsOf(mine) != "REQUESTED by SUPPLIER; GRANTED by CUSTOMER" || r.header.Get("ETag") == agent.header.Get("ETag") {
		t.Errorf("%+v", mine)
	}
	var list client.Consents
	holdsTo(t, "Consents", w.get(w.a, "/v1/metering-points/"+e.String()+"/consents").body, &list)
	if len(list.Consents) != 1 || !reflect.DeepEqual(list.Consents[0], mine) {
		t.Errorf("%+v", list)
	}
	if rec = w.lastRecord(); rec.Operation != audit.Consents || rec.Outcome != audit.Given || rec.EAN != e || rec.FileVersion != 5 {
		t.Errorf("record %+v", rec)
	}

	// Revoked by the supplier: the next request is refused.
	w.tap.taken()
	r = w.post(w.a, w.token(w.a), "/v1/consents/"+k.Id.String()+"/revoke", nil, "If-Match", r.header.Get("ETag"))
	k = w.consentOf(r, 200)
	if calls := w.tap.taken(); calls != "supplier key consent seal store" {
		t.Errorf("calls %q", calls)
	}
	if k.State != client.ConsentStateREVOKED || stepsOf(k) != "REQUESTED by SUPPLIER; GRANTED by CUSTOMER; REVOKED by SUPPLIER" {
		t.Errorf("%+v", k)
	}
	if got := w.gives(w.a, e); got != "CONSENT_REVOKED" {
		t.Errorf("revoked: %s", got)
	}
	w.stands(e, 6, "4")
}

// stands checks that what is stored of a metering point is whole: the newest
// legal file verifies, each version is of the one before, the index says what
// it says (which is states, if given), and every step has exactly one record and
// idempotency key.
func (w *world) stands(e meter.EAN, version uint64, states string) {
	w.t.Helper()
	db := w.owner()
	rows, err := db.QueryContext(w.t.Context(), `SELECT file FROM legal_file WHERE ean = $1 ORDER BY version`, e.Int64())
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	var file *authz.LegalFile
	byToken := 0
	for rows.Next() {
		var sealed []byte
		if err := rows.Scan(&sealed); err != nil {
			w.t.Fatal(err)
		}
		next := must(w.pool.keys.LegalFile(sealed))
		if file != nil && next.Previous() != file.Digest() {
			w.t.Errorf("version %d is not of the one before", next.Version())
		}
		if file = next; file.Actor().Kind != authz.ByOperator {
			byToken++
		}
	}
	if err := rows.Err(); err != nil {
		w.t.Fatal(err)
	}
	if file.Version() != version {
		w.t.Errorf("version %d, want %d", file.Version(), version)
	}
	var got string
	if err := db.QueryRowContext(w.t.Context(), `SELECT coalesce(string_agg(state::text, ',' ORDER BY consent_id), '') FROM consent WHERE ean = $1`, e.Int64()).Scan(&got); err != nil {
		w.t.Fatal(err)
	}
	var want []string
	for _, k := range file.Consents() {
		want = append(want, fmt.Sprint(uint8(k.State)))
	}
	if states == "" {
		states = got
	}
	if got != strings.Join(want, ",") || got != states {
		w.t.Errorf("the index says %q, the file %q, the test %q", got, want, states)
	}
	var keys int
	if err := db.QueryRowContext(w.t.Context(), `SELECT count(*) FROM idempotency_key i WHERE EXISTS (SELECT FROM consent c WHERE c.consent_id = i.consent_id AND c.ean = $1)`, e.Int64()).Scan(&keys); err != nil {
		w.t.Fatal(err)
	}
	if keys != byToken {
		w.t.Errorf("%d idempotency keys for %d steps", keys, byToken)
	}
	versions := map[uint64]bool{}
	for _, r := range w.records() {
		if r.EAN == e && r.Operation == audit.ConsentStep && r.Outcome == audit.Given {
			versions[r.FileVersion] = true
		}
	}
	if len(versions) != byToken {
		w.t.Errorf("records of %d versions for %d steps", len(versions), byToken)
	}
}

// A consent that customer service registers on the customer's word, and takes
// back again.
func TestLifeOfARegisteredConsent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	w.fill(e)
	f := w.form(e, form{"supplier": w.a.gln.String(), "evidence": "call-1"})
	errand := authz.Errand{Kind: authz.ErrandStep, EAN: e, Action: authz.ActionRegister, Scope: f.scope(e, w.a.gln), Evidence: "call-1"}
	r := w.post(w.portal, w.staffToken("super-1", authz.Supervisor, errand), "/v1/consents", f)
	k := w.consentOf(r, 201)
	if k.State != client.ConsentStateACTIVE || stepsOf(k) != "REGISTERED by CUSTOMER ("+stafftest.Subject("super-1")+")" || k.Supplier != w.a.gln.String() || k.To != nil {
		t.Errorf("%+v", k)
	}
	if rec := w.lastRecord(); rec.Action != authz.ActionRegister || rec.Outcome != audit.Given || rec.ConsentID != k.Id {
		t.Errorf("record %+v", rec)
	}
	if got := w.gives(w.a, e); got != "yes" {
		t.Errorf("registered: %s", got)
	}
	// Longer than the market lets one last: not possible; so long as that, it
	// ends when the market says.
	if mine := w.consentOf(w.get(w.a, "/v1/consents/"+k.Id.String()), 200); stepsOf(mine) != "REGISTERED by CUSTOMER" {
		t.Errorf("%+v", mine)
	}
	k = w.consentOf(w.answer(k, r.header.Get("ETag"), authz.ActionRevoke), 200)
	if k.State != client.ConsentStateREVOKED || !strings.HasSuffix(stepsOf(k), "; REVOKED by CUSTOMER ("+stafftest.Subject("agent-17")+")") {
		t.Errorf("%+v", k)
	}
	if got := w.gives(w.a, e); got != "CONSENT_REVOKED" {
		t.Errorf("revoked: %s", got)
	}
	w.stands(e, 5, "4")
}

// The other ends of a request; and which consents each sees.
func TestRejectedWithdrawnAndLists(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	rejected, _ := w.request(w.a, e, form{"evidence": "1"})
	tagOf := func(k client.Consent) string {
		return w.asStaff(w.view(e, authz.Agent), "/v1/consents/"+k.Id.String()).header.Get("ETag")
	}
	if k := w.consentOf(w.answer(rejected, tagOf(rejected), authz.ActionReject), 200); k.State != client.ConsentStateREJECTED || k.ValidFrom != nil {
		t.Errorf("%+v", k)
	}
	withdrawn, tag := w.request(w.a, e, form{"evidence": "2"})
	if k := w.consentOf(w.post(w.a, w.token(w.a), "/v1/consents/"+withdrawn.Id.String()+"/revoke", nil, "If-Match", tag), 200); k.State != client.ConsentStateREVOKED ||
		stepsOf(k) != "REQUESTED by SUPPLIER; REVOKED by SUPPLIER" {
		t.Errorf("%+v", k)
	}
	open, _ := w.request(w.a, e, form{"evidence": "3"})
	// B's, of the time when it will supply; and one that has expired.
	b := w.consent(w.b)
	b.ID, b.Evidence, b.ValidUntil = [16]byte{9}, "4", time.Now().Add(time.Second).Truncate(time.Second).Add(time.Second)
	w.legalFile(e, meter.Electricity, b)
	time.Sleep(time.Until(b.ValidUntil))
	for name, tc := range map[string]struct {
		r    reply
		want []string
	}{
		"supplier A": {w.get(w.a, "/v1/metering-points/"+e.String()+"/consents"), []string{"3 REQUESTED", "2 REVOKED", "1 REJECTED"}},
		"supplier B": {w.get(w.b, "/v1/metering-points/"+e.String()+"/consents"), []string{"4 EXPIRED"}},
		"agent":      {w.asStaff(w.view(e, authz.Agent), "/v1/metering-points/"+e.String()+"/consents"), []string{"4 EXPIRED", "3 REQUESTED", "2 REVOKED", "1 REJECTED"}},
		"auditor":    {w.asStaff(w.view(e, authz.Auditor), "/v1/metering-points/"+e.String()+"/consents"), []string{"4 EXPIRED", "3 REQUESTED", "2 REVOKED", "1 REJECTED"}},
	} {
		var list client.Consents
		holdsTo(t, "Consents", tc.r.body, &list)
		var got []string
		for _, k := range list.Consents {
			got = append(got, k.Evidence+" "+string(k.State))
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
	// A step by the operator names its certificate to employees only.
	seen := w.consentOf(w.asStaff(w.view(e, authz.Supervisor), "/v1/consents/"+uuid.UUID(b.ID).String()), 200)
	if got := stepsOf(seen); got != "REGISTERED by OPERATOR (registrar)" {
		t.Error(got)
	}
	if got := stepsOf(w.consentOf(w.get(w.b, "/v1/consents/"+uuid.UUID(b.ID).String()), 200)); got != "REGISTERED by OPERATOR" {
		t.Error(got)
	}
	if w.get(w.b, "/v1/consents/"+open.Id.String()).status != 404 {
		t.Error("B sees A's")
	}
}

// What time and moves make of consents, as the API tells it, and that nothing
// can be done with them any more.
func TestConsentsThatEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	today := meter.DayOf(time.Now(), w.profile.Location())
	e := w.customer(1, w.a)
	asked, tag := w.request(w.a, e, form{"evidence": "asked"})
	w.legalFile(e, meter.Electricity, w.consent(w.a)) // given
	// The customer moves out yesterday, as is learned today.
	w.legalFile(e, meter.Electricity, authz.SetOccupancy{Days: meter.DayRange{From: today, To: meter.MaxDay}})
	agent := func(k client.Consent) (client.Consent, string) {
		r := w.asStaff(w.view(e, authz.Agent), "/v1/consents/"+k.Id.String())
		return w.consentOf(r, 200), r.header.Get("ETag")
	}
	seen, tag2 := agent(asked)
	if seen.State != client.ConsentStateENDEDBYMOVE || seen.AnswerBy != nil {
		t.Errorf("%+v", seen)
	}
	for what, r := range map[string]reply{
		"granted":   w.answer(seen, tag2, authz.ActionGrant),
		"rejected":  w.answer(seen, tag2, authz.ActionReject),
		"revoked":   w.answer(seen, tag2, authz.ActionRevoke),
		"withdrawn": w.post(w.a, w.token(w.a), "/v1/consents/"+asked.Id.String()+"/revoke", nil, "If-Match", tag),
	} {
		if r.status != 409 || r.problem(t) != "consent-ended" || !strings.Contains(string(r.body), "moved") {
			t.Errorf("%s: %d %s", what, r.status, r.body)
		}
	}
	recs := w.records()
	for _, rec := range recs[len(recs)-4:] {
		if rec.Operation != audit.ConsentStep || rec.Outcome != audit.Refused || rec.ConsentID != asked.Id || rec.EAN != e || rec.FileVersion == 0 {
			t.Errorf("record %+v", rec)
		}
	}
	given, _ := agent(client.Consent{Id: uuid.UUID{1}})
	if given.State != client.ConsentStateENDEDBYMOVE {
		t.Errorf("%+v", given)
	}
}

// An employee reads for the customer on the line: what the errand says, on the
// basis of customer service, and nothing of another customer's time.
func TestEmployeeReads(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e, other := w.customer(1, w.a), w.customer(2, w.a)
	w.fill(e)
	errand := authz.Errand{Kind: authz.ErrandReadings, EAN: e, Days: w.days(), Fields: []meter.FieldCode{w.field("import_low"), w.field("import_normal")}}
	token := w.staffToken("agent-17", authz.Agent, errand)
	w.tap.taken()
	r := w.asStaff(token, w.path(e, "purpose", "CUSTOMER_SERVICE"))
	a := w.answerOf(r)
	if calls := w.tap.taken(); calls != "supplier legal-file blocks open record" {
		t.Errorf("calls %q", calls)
	}
	if len(a.Series) != 2 || len(a.Withheld) != 0 || string(a.Series[0].LegalBasis) != "CUSTOMER_SERVICE" || a.Series[0].DeliveredCount == 0 {
		t.Errorf("%+v", a)
	}
	rec := w.lastRecord()
	if rec.Operation != audit.Readings || rec.Outcome != audit.Given || rec.Employee != stafftest.Subject("agent-17") || len(rec.Receipt) == 0 || len(rec.Fields) != 2 {
		t.Errorf("record %+v", rec)
	}
	// Another purpose gives nothing, whatever suppliers may.
	if a := w.answerOf(w.asStaff(token, w.path(e, "purpose", "BILLING"))); len(a.Series) != 0 || len(a.Withheld) == 0 {
		t.Errorf("%+v", a)
	}
	for name, path := range map[string]string{
		"another metering point": w.path(other, "purpose", "CUSTOMER_SERVICE"),
		"an unknown one":         w.path(w.ean(99), "purpose", "CUSTOMER_SERVICE"),
		"a day more":             w.path(e, "purpose", "CUSTOMER_SERVICE", "to", (w.days().To + 1).String()),
		"a day before":           w.path(e, "purpose", "CUSTOMER_SERVICE", "from", (w.days().From - 1).String()),
		"another field":          w.path(e, "purpose", "CUSTOMER_SERVICE", "fields", "import_low,export_low"),
		"all of a class":         w.path(e, "purpose", "CUSTOMER_SERVICE", "class", "registers"),
	} {
		w.tap.taken()
		before := len(w.records())
		if r := w.asStaff(token, path); r.status != 403 || r.problem(t) != "not-permitted" {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
		if calls := w.tap.taken(); strings.Contains(calls, "blocks") || strings.Contains(calls, "open") {
			t.Errorf("%s: calls %q", name, calls)
		}
		recs := w.records()
		if last := recs[len(recs)-1]; len(recs) != before+1 || last.Outcome != audit.NoRelation || last.Employee == "" || last.FileVersion != 0 {
			t.Errorf("%s: %d records, %+v", name, len(recs)-before, last)
		}
	}
}

// What an employee may be told of access: its own, and on behalf of suppliers.
func TestEmployeeLooksAtAccess(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a, w.consent(w.a))
	w.fill(e)
	supplier := func(s *supplier) string { return accessPath(e, "supplier", s.gln.String()) }
	strip := func(r reply) string {
		decided := w.accessOf(r).DecidedAt.Format(time.RFC3339)
		s := strings.ReplaceAll(string(r.body), r.header.Get("X-Interaction-Id"), "ID")
		return strings.ReplaceAll(s, `"decidedAt":"`+decided, `"decidedAt":"NOW`)
	}
	want := strip(w.get(w.a, accessPath(e)))
	for _, role := range []authz.Role{authz.Agent, authz.Supervisor, authz.Auditor} {
		token := w.view(e, role)
		if got := strip(w.asStaff(token, supplier(w.a))); got != want {
			t.Errorf("%s is told of A\n%.3000s\nA itself\n%.3000s", role, got, want)
		}
		if rec := w.lastRecord(); rec.Operation != audit.DryRun || rec.Outcome != audit.Given || rec.Employee == "" {
			t.Errorf("record %+v", rec)
		}
		if r := w.asStaff(token, supplier(w.b)); r.status != 404 || r.problem(t) != "metering-point-not-found" {
			t.Errorf("%s, of B: %d %s", role, r.status, r.body)
		}
		own := w.accessOf(w.asStaff(token, accessPath(e)))
		for _, g := range own.Granted {
			if string(g.LegalBasis) != "CUSTOMER_SERVICE" {
				t.Errorf("%s itself may read %+v", role, g)
			}
		}
		if (len(own.Granted) > 0) == (role == authz.Auditor) {
			t.Errorf("%s may read %d things", role, len(own.Granted))
		}
		if r := w.asStaff(token, accessPath(w.ean(2))); r.status != 403 || r.problem(t) != "not-permitted" {
			t.Errorf("another metering point: %d %s", r.status, r.body)
		}
	}
	if r := w.get(w.a, supplier(w.a)); r.status != 403 || r.problem(t) != "not-permitted" {
		t.Errorf("a supplier that names itself: %d %s", r.status, r.body)
	}
	if r := w.get(w.a, accessPath(e, "supplier", "8712423000011")); r.status != 400 || !bytes.Contains(r.body, []byte("/query/supplier")) {
		t.Errorf("no GLN: %d %s", r.status, r.body)
	}
}
