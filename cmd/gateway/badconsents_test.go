package main

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi/client"
)

// pointersOf are those of an answer that lists faults, sorted.
func pointersOf(t *testing.T, r reply) string {
	t.Helper()
	var p client.Problem
	if err := json.Unmarshal(r.body, &p); err != nil || p.Errors == nil {
		return ""
	}
	var got []string
	for _, e := range *p.Errors {
		got = append(got, e.Pointer)
		if e.Reason == "" || strings.Contains(e.Reason, "contract") {
			t.Errorf("%s %q says nothing", e.Pointer, e.Reason)
		}
	}
	slices.Sort(got)
	return strings.Join(got, " ")
}

// Whatever is wrong with a request that would change something is told, all at
// once and without repeating it; nothing is looked up, stored or recorded.
func TestBadConsentRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	k, tag := w.request(w.a, e, nil)
	consent := "/v1/consents/" + k.Id.String()
	good := w.form(e, nil)
	agent := w.staffToken("agent-17", authz.Agent, errandFor(k, authz.ActionGrant, "x"))
	register := w.staffToken("agent-17", authz.Agent, authz.Errand{Kind: authz.ErrandStep, EAN: e, Action: authz.ActionRegister, Scope: good.scope(e, w.a.gln), Evidence: "x"})
	big := `{"evidence":"` + strings.Repeat("curiosity", 1000) + `"}`
	before := len(w.records())

	for name, tc := range map[string]struct {
		staff   string // token; else the supplier's
		path    string // "": of createConsent
		body    any
		headers []string
		status  int
		problem string
		want    string // pointers
		calls   string
	}{
		"not said to be JSON": {body: good, headers: []string{"Content-Type", ""}, status: 415, problem: "unsupported-media-type", calls: "supplier"},
		"text":                {body: good, headers: []string{"Content-Type", "text/plain"}, status: 415, problem: "unsupported-media-type", calls: "supplier"},
		"a form":              {body: "a=b", headers: []string{"Content-Type", "application/x-www-form-urlencoded"}, status: 415, problem: "unsupported-media-type", calls: "supplier"},
		"compressed":          {body: good, headers: []string{"Content-Encoding", "gzip"}, status: 415, problem: "unsupported-media-type", calls: "supplier"},
		"another charset":     {body: good, headers: []string{"Content-Type", "application/json; charset=utf-16"}, status: 415, problem: "unsupported-media-type", calls: "supplier"},
		"too long":            {body: big, status: 413, problem: "content-too-large"},
		"no body":             {headers: []string{"Content-Type", "application/json"}, status: 400, want: "/body"},
		"no JSON":             {body: "curiosity", status: 400, want: "/body"},
		"a list":              {body: "[]", status: 400, want: "/body"},
		"two objects":         {body: "{}{}", status: 400, want: "/body"},
		"a member twice":      {body: `{"evidence":"a","evidence":"b"}`, status: 400, want: "/body"},
		"empty":               {body: "{}", status: 400, want: "/body/classes /body/ean /body/evidence /body/from /body/granularity /body/purpose /body/validUntil"},
		"empty, an employee's": {staff: register, body: "{}", status: 400,
			want: "/body/classes /body/ean /body/evidence /body/from /body/granularity /body/purpose /body/supplier /body/validUntil"},
		"unknown member":       {body: w.form(e, form{"curiosity": 1}), status: 400, want: "/body"},
		"unknown class":        {body: w.form(e, form{"classes": []string{"curiosity"}}), status: 400, want: "/body/classes"},
		"no classes":           {body: w.form(e, form{"classes": []string{}}), status: 400, want: "/body/classes"},
		"reversed":             {body: w.form(e, form{"from": "2026-02-01", "to": "2026-01-01"}), status: 400, want: "/body/to"},
		"endless":              {body: w.form(e, form{"validUntil": nil}), status: 400, want: "/body/validUntil"},
		"no evidence":          {body: w.form(e, form{"evidence": nil}), status: 400, want: "/body/evidence"},
		"evidence of nothing":  {body: w.form(e, form{"evidence": ""}), status: 400, want: "/body/evidence"},
		"evidence of blanks":   {body: w.form(e, form{"evidence": "   "}), status: 400, want: "/body/evidence"},
		"evidence, and blanks": {body: w.form(e, form{"evidence": "curiosity "}), status: 400, want: "/body/evidence"},
		"evidence of lines":    {body: w.form(e, form{"evidence": "curiosity\n"}), status: 400, want: "/body/evidence"},
		"check digit":          {body: w.form(e, form{"ean": "871687140000000018"}), status: 400, want: "/body/ean"},
		"no key":               {body: good, headers: []string{"Idempotency-Key", ""}, status: 400, want: "/header/Idempotency-Key"},
		"a key with a space":   {body: good, headers: []string{"Idempotency-Key", "curio sity"}, status: 400, want: "/header/Idempotency-Key"},
		"a key too long":       {body: good, headers: []string{"Idempotency-Key", strings.Repeat("x", 129)}, status: 400, want: "/header/Idempotency-Key"},
		"a key of other signs": {body: good, headers: []string{"Idempotency-Key", "curiosité"}, status: 400, want: "/header/Idempotency-Key"},
		"key and body":         {body: w.form(e, form{"purpose": "CURIOSITY", "curiosity": 1}), headers: []string{"Idempotency-Key", ""}, status: 400, want: "/body /body/purpose /header/Idempotency-Key"},
		"a query":              {path: "/v1/consents?curiosity=1", body: w.form(e, form{"evidence": nil}), status: 400, want: "/body/evidence /query"},

		"grant without evidence":       {staff: agent, path: consent + "/grant", body: "{}", headers: []string{"If-Match", tag}, status: 400, want: "/body/evidence"},
		"grant on blank evidence":      {staff: agent, path: consent + "/grant", body: `{"evidence":" "}`, headers: []string{"If-Match", tag}, status: 400, want: "/body/evidence"},
		"grant with more":              {staff: agent, path: consent + "/grant", body: `{"evidence":"x","curiosity":1}`, headers: []string{"If-Match", tag}, status: 400, want: "/body"},
		"grant without a body":         {staff: agent, path: consent + "/grant", headers: []string{"If-Match", tag}, status: 415, problem: "unsupported-media-type", calls: "supplier"},
		"grant, all of it":             {staff: agent, path: "/v1/consents/curiosity/grant?curiosity", body: `{"curiosity":1}`, headers: []string{"If-Match", "curiosity", "Idempotency-Key", ""}, status: 400, want: "/body /body/evidence /header/Idempotency-Key /header/If-Match /path/id /query"},
		"grant without a tag":          {staff: agent, path: consent + "/grant", body: `{"evidence":"x"}`, status: 428, problem: "precondition-required", calls: "supplier"},
		"revoke without a tag":         {path: consent + "/revoke", status: 428, problem: "precondition-required", calls: "supplier"},
		"revoke whatever it is":        {path: consent + "/revoke", headers: []string{"If-Match", "*"}, status: 400, want: "/header/If-Match"},
		"revoke what is no tag":        {path: consent + "/revoke", headers: []string{"If-Match", "curiosity"}, status: 400, want: "/header/If-Match"},
		"revoke with a body":           {path: consent + "/revoke", body: "{}", headers: []string{"If-Match", tag}, status: 413, problem: "content-too-large"},
		"revoke without a key":         {path: consent + "/revoke", headers: []string{"If-Match", tag, "Idempotency-Key", ""}, status: 400, want: "/header/Idempotency-Key"},
		"revoke, an id of no hyphens":  {path: "/v1/consents/" + strings.ReplaceAll(k.Id.String(), "-", "") + "/revoke", headers: []string{"If-Match", tag}, status: 400, want: "/path/id"},
		"revoke, an id in braces":      {path: "/v1/consents/{" + k.Id.String() + "}/revoke", headers: []string{"If-Match", tag}, status: 400, want: "/path/id"},
		"revoke, the id of nothing":    {path: "/v1/consents/" + uuid.Nil.String() + "/revoke", headers: []string{"If-Match", tag}, status: 400, want: "/path/id"},
		"revoke, an id and no key":     {path: "/v1/consents/curiosity/revoke", headers: []string{"Idempotency-Key", ""}, status: 400, want: "/header/Idempotency-Key /path/id"},
		"revoke, a key of another age": {path: consent + "/revoke", headers: []string{"If-Match", tag, "Idempotency-Key", "\t"}, status: 400, want: "/header/Idempotency-Key"},
	} {
		if tc.status == 400 {
			tc.problem, tc.calls = "invalid-parameters", "supplier"
		}
		if tc.path == "" {
			tc.path = "/v1/consents"
		}
		who, token := w.a, w.token(w.a)
		if tc.staff != "" {
			who, token = w.portal, tc.staff
		}
		w.tap.taken()
		r := w.post(who, token, tc.path, tc.body, tc.headers...)
		if r.status != tc.status || r.problem(t) != tc.problem || pointersOf(t, r) != tc.want {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
		if calls := w.tap.taken(); calls != tc.calls {
			t.Errorf("%s: calls %q", name, calls)
		}
		for _, sent := range []string{"uriosit", "871687140000000018", "2026-02-01"} {
			if strings.Contains(string(r.body), sent) || strings.Contains(w.log.String(), sent) {
				t.Errorf("%s: what was sent is repeated: %s", name, r.body)
			}
		}
	}
	// A body of unknown length, and one that is longer than it was said to be.
	chunked := w.do(w.http(w.a.cert), http.MethodPost, "/v1/consents", func(r *http.Request) {
		w.posting(w.token(w.a), big)(r)
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(big)), -1
	})
	if chunked.status != 413 || chunked.problem(t) != "content-too-large" {
		t.Errorf("chunked: %d %s", chunked.status, chunked.body)
	}
	twice := w.do(w.http(w.a.cert), http.MethodPost, "/v1/consents", func(r *http.Request) {
		w.posting(w.token(w.a), good)(r)
		r.Header["Idempotency-Key"] = []string{"a", "b"}
	})
	if twice.status != 400 || pointersOf(t, twice) != "/header/Idempotency-Key" {
		t.Errorf("two keys: %d %s", twice.status, twice.body)
	}
	for method, path := range map[string]string{"PUT": consent, "DELETE": consent, "GET": consent + "/revoke", "PATCH": "/v1/consents"} {
		r := w.do(w.http(w.a.cert), method, path, bearer(w.token(w.a)))
		want := "GET"
		if path != consent {
			want = "POST"
		}
		if r.status != 405 || r.header.Get("Allow") != want {
			t.Errorf("%s %s: %d, Allow %q", method, path, r.status, r.header.Get("Allow"))
		}
	}
	if n := len(w.records()) - before; n != 0 {
		t.Errorf("%d records of requests that were not understood", n)
	}
	w.stands(e, 4, "1")
}

// What the market, the facts and the life of a consent do not let be: a precise
// problem each, one record, and nothing stored.
func TestStepsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	over := time.Now().UTC().Truncate(time.Second)
	in := func(d time.Duration) string { return over.Add(d).Format(time.RFC3339) }
	short, _ := w.request(w.a, e, form{"evidence": "short", "validUntil": in(4 * time.Second)})
	lapses := time.Now().Add(4 * time.Second)
	answered, _ := w.request(w.a, e, form{"evidence": "answered"})
	rejected, _ := w.request(w.a, e, form{"evidence": "rejected"})
	revoked, tag := w.request(w.a, e, form{"evidence": "revoked"})
	w.consentOf(w.post(w.a, w.token(w.a), "/v1/consents/"+revoked.Id.String()+"/revoke", nil, "If-Match", tag), 200)
	view := w.view(e, authz.Agent)
	now := func(k client.Consent) (client.Consent, string) {
		r := w.asStaff(view, "/v1/consents/"+k.Id.String())
		return w.consentOf(r, 200), r.header.Get("ETag")
	}
	step := func(k client.Consent, action authz.ConsentAction) reply {
		k, tag := now(k)
		return w.answer(k, tag, action)
	}
	w.consentOf(step(answered, authz.ActionGrant), 200)
	w.consentOf(step(rejected, authz.ActionReject), 200)
	time.Sleep(time.Until(lapses))

	create := func(change form) func() reply {
		return func() reply { return w.post(w.a, w.token(w.a), "/v1/consents", w.form(e, change)) }
	}
	// A's consents by another supplier's or another errand's token.
	other := w.customer(2, w.a)
	register := func(f form, on form) func() reply {
		errand := authz.Errand{Kind: authz.ErrandStep, EAN: e, Action: authz.ActionRegister, Scope: on.scope(e, w.a.gln), Evidence: on["evidence"].(string)}
		f["supplier"] = w.a.gln.String()
		return func() reply {
			return w.post(w.portal, w.staffToken("agent-17", authz.Agent, errand), "/v1/consents", f)
		}
	}
	seen := w.form(e, form{"evidence": "call"})
	asEmployee := func(change func(*authz.Errand), action string, k client.Consent, evidence string) func() reply {
		return func() reply {
			k, tag := now(k)
			errand := errandFor(k, must(authz.ParseConsentAction(action)), evidence)
			change(&errand)
			var body any
			if action == "grant" {
				body = form{"evidence": "call-9"}
			}
			return w.post(w.portal, w.staffToken("agent-17", authz.Agent, errand), "/v1/consents/"+k.Id.String()+"/"+action, body, "If-Match", tag)
		}
	}
	open, openTag := w.request(w.a, e, form{"evidence": "open"})

	for name, tc := range map[string]struct {
		do      func() reply
		status  int
		problem string
		detail  string // part of it
		outcome audit.Outcome
	}{
		"a purpose without consent":       {create(form{"purpose": "SWITCH"}), 422, "consent-not-possible", "purpose", audit.Refused},
		"a class without consent":         {create(form{"classes": []string{"intervals", "registers"}}), 422, "consent-not-possible", "class", audit.Refused},
		"days that are gone":              {create(form{"from": "2020-01-01", "to": "2021-01-01"}), 422, "consent-not-possible", "days", audit.Refused},
		"valid too long":                  {create(form{"validUntil": in(4 * 366 * 24 * time.Hour)}), 422, "consent-not-possible", "36 months", audit.Refused},
		"valid no more":                   {create(form{"validUntil": in(-time.Hour)}), 422, "consent-not-possible", "end has passed", audit.Refused},
		"for another supplier":            {create(form{"supplier": w.b.gln.String()}), 403, "not-permitted", "itself", audit.Refused},
		"registered twice":                {func() reply { f := w.form(e, form{"evidence": "answered"}); return register(f, f)() }, 409, "consent-answered", "evidence of its own", audit.Refused},
		"registered otherwise than told":  {register(w.form(e, form{"evidence": "call", "to": "2040-01-01"}), seen), 403, "not-permitted", "another consent", audit.Refused},
		"registered elsewhere than told":  {register(w.form(other, form{"evidence": "call"}), seen), 403, "not-permitted", "", audit.Refused},
		"granted what was not asked":      {func() reply { return step(answered, authz.ActionGrant) }, 409, "consent-answered", "given", audit.Refused},
		"rejected what was granted":       {func() reply { return step(answered, authz.ActionReject) }, 409, "consent-answered", "", audit.Refused},
		"granted what was rejected":       {func() reply { return step(rejected, authz.ActionGrant) }, 409, "consent-answered", "rejected", audit.Refused},
		"revoked what was rejected":       {func() reply { return step(rejected, authz.ActionRevoke) }, 409, "consent-answered", "", audit.Refused},
		"granted what was withdrawn":      {func() reply { return step(revoked, authz.ActionGrant) }, 409, "consent-ended", "revoked", audit.Refused},
		"revoked twice":                   {func() reply { return step(revoked, authz.ActionRevoke) }, 409, "consent-ended", "", audit.Refused},
		"granted what lapsed":             {func() reply { return step(short, authz.ActionGrant) }, 409, "consent-lapsed", "in time", audit.Refused},
		"rejected what lapsed":            {func() reply { return step(short, authz.ActionReject) }, 409, "consent-lapsed", "", audit.Refused},
		"another step than the errand's":  {asEmployee(func(x *authz.Errand) { x.Action, x.Evidence = authz.ActionReject, "" }, "grant", open, "call-9"), 403, "not-permitted", "", audit.NoRelation},
		"another consent than the errand": {asEmployee(func(x *authz.Errand) { x.ConsentID = answered.Id }, "reject", open, ""), 403, "not-permitted", "", audit.NoRelation},
		"another place than the errand's": {asEmployee(func(x *authz.Errand) { x.EAN = other }, "reject", open, ""), 404, "consent-not-found", "", audit.NoRelation},
		"another scope than was told":     {asEmployee(func(x *authz.Errand) { x.Scope[3] ^= 1 }, "reject", open, ""), 403, "not-permitted", "another scope", audit.Refused},
		"other evidence than the errand":  {asEmployee(func(*authz.Errand) {}, "grant", open, "call-8"), 403, "not-permitted", "", audit.Refused},
		"a tag of another state": {func() reply {
			return w.post(w.a, w.token(w.a), "/v1/consents/"+answered.Id.String()+"/revoke", nil, "If-Match", openTag)
		}, 412, "precondition-failed", "", audit.Refused},
		"a weak tag": {func() reply {
			return w.post(w.a, w.token(w.a), "/v1/consents/"+open.Id.String()+"/revoke", nil, "If-Match", "W/"+openTag)
		}, 412, "precondition-failed", "", audit.Refused},
	} {
		before := len(w.records())
		version := must(w.pool.keys.LegalFile(must(w.registrar.LegalFile(t.Context(), e)).Sealed)).Version()
		r := tc.do()
		var p client.Problem
		if r.status != tc.status || r.problem(t) != tc.problem || json.Unmarshal(r.body, &p) != nil || !strings.Contains(*p.Detail, tc.detail) {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
		recs := w.records()
		last := recs[len(recs)-1]
		if last.Operation != audit.ConsentStep || last.Outcome != tc.outcome || last.Action == 0 || (last.EAN == e) != (tc.outcome == audit.Refused) && name != "registered elsewhere than told" {
			t.Errorf("%s: %d records, %+v", name, len(recs)-before, last)
		}
		for _, rec := range recs[before : len(recs)-1] {
			if rec.Operation != audit.Consents { // the look at it before
				t.Errorf("%s: one more record: %+v", name, rec)
			}
		}
		if v := must(w.pool.keys.LegalFile(must(w.registrar.LegalFile(t.Context(), e)).Sealed)).Version(); v != version {
			t.Errorf("%s: version %d after %d", name, v, version)
		}
	}
	w.stands(e, 11, "")
}

func TestTooManyConsents(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	var steps []authz.Step
	for i := range authz.MaxConsents {
		k := w.consent(w.a)
		k.ID = [16]byte{7, byte(i)}
		steps = append(steps, k)
	}
	w.legalFile(e, meter.Electricity, steps...)
	if r := w.post(w.a, w.token(w.a), "/v1/consents", w.form(e, nil)); r.status != 409 || r.problem(t) != "too-many-consents" {
		t.Errorf("%d %s", r.status, r.body)
	}
	var list client.Consents
	holdsTo(t, "Consents", w.get(w.a, "/v1/metering-points/"+e.String()+"/consents").body, &list)
	if len(list.Consents) != authz.MaxConsents {
		t.Errorf("%d consents", len(list.Consents))
	}
}

// A metering point, or a consent, that is unknown and one that is another
// supplier's: the same answer but for the id, the same calls, a record of the
// same shape.
func TestConsentsOfOthersAreUnknown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	foreign := w.customer(1, w.b)
	k, tag := w.request(w.b, foreign, nil)
	both := w.customer(2, w.a) // B supplies it now
	w.legalFile(both, meter.Electricity, authz.SetSupply{Supplier: w.b.gln, Days: meter.DayRange{From: day("2022-01-01"), To: meter.MaxDay}})
	beside, besideTag := w.request(w.b, both, nil)
	unknown, nowhere := w.ean(9), uuid.New()
	forged := uuid.New() // in the index only
	w.sql(`INSERT INTO consent (ean, consent_id, gln, state, from_day, valid_until) VALUES ($1, $2, $3, 2, '2020-01-01', now() + interval '1 year')`, foreign.Int64(), forged.String(), w.a.gln.Int64())

	type seen struct {
		status                      int
		body, header, calls, record string
	}
	look := func(do func() reply) seen {
		w.tap.taken()
		r := do()
		id := r.header.Get("X-Interaction-Id")
		r.header.Del("Date")
		calls := w.tap.taken()
		rec := w.lastRecord()
		rec.InteractionID, rec.At, rec.TokenID = [16]byte{1}, time.Unix(1, 0), [32]byte{}
		if rec.ConsentID != [16]byte{} {
			rec.ConsentID = [16]byte{1}
		}
		if !rec.EAN.IsZero() {
			rec.EAN = unknown
		}
		return seen{r.status, strings.ReplaceAll(string(r.body), id, "ID"), strings.ReplaceAll(string(must(json.Marshal(r.header))), id, "ID"), calls, string(must(rec.Encode()))}
	}
	same := func(what, calls string, status int, all ...func() reply) {
		t.Helper()
		var want seen
		for i, do := range all {
			got := look(do)
			if got.status != status || got.calls != calls {
				t.Errorf("%s %d: %+v", what, i, got)
			}
			if i == 0 {
				want = got
			} else if got != want {
				t.Errorf("%s %d is answered\n%+v\nand an unknown one\n%+v", what, i, got, want)
			}
		}
	}
	get := func(path string) func() reply { return func() reply { return w.get(w.a, path) } }
	list := func(e meter.EAN) func() reply { return get("/v1/metering-points/" + e.String() + "/consents") }
	same("the list of", "supplier legal-file record", 404, list(unknown), list(foreign))
	create := func(e meter.EAN, change form) func() reply {
		return func() reply { return w.post(w.a, w.token(w.a), "/v1/consents", w.form(e, change)) }
	}
	same("a new one at", "supplier key legal-file record", 404, create(unknown, nil), create(foreign, nil))
	same("a new one for B at", "supplier key legal-file record", 404, create(unknown, form{"supplier": w.b.gln.String()}), create(foreign, form{"supplier": w.b.gln.String()}))
	one := func(id uuid.UUID) func() reply { return get("/v1/consents/" + id.String()) }
	same("consent", "supplier consent record", 404, one(nowhere), one(k.Id), one(beside.Id), one(forged))
	revoke := func(id uuid.UUID, tag string) func() reply {
		return func() reply {
			return w.post(w.a, w.token(w.a), "/v1/consents/"+id.String()+"/revoke", nil, "If-Match", tag)
		}
	}
	same("the end of", "supplier key consent record", 404, revoke(nowhere, tag), revoke(k.Id, tag), revoke(k.Id, `"stale"`), revoke(beside.Id, besideTag), revoke(forged, tag))
	// Where both have something to do, each sees its own.
	var mine client.Consents
	holdsTo(t, "Consents", w.get(w.a, "/v1/metering-points/"+both.String()+"/consents").body, &mine)
	if len(mine.Consents) != 0 {
		t.Errorf("%+v", mine)
	}
	w.stands(both, 5, "1")
}

// A legal file that does not verify lets nothing be done, and says so.
func TestConsentsOnInvalidEvidence(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	k, tag := w.request(w.a, e, nil)
	w.sql(`UPDATE legal_file SET file = set_bit(file, 300, 1 - get_bit(file, 300)) WHERE ean = $1`, e.Int64())
	for name, do := range map[string]func() reply{
		"list":   func() reply { return w.get(w.a, "/v1/metering-points/"+e.String()+"/consents") },
		"get":    func() reply { return w.get(w.a, "/v1/consents/"+k.Id.String()) },
		"create": func() reply { return w.post(w.a, w.token(w.a), "/v1/consents", w.form(e, form{"evidence": "2"})) },
		"revoke": func() reply {
			return w.post(w.a, w.token(w.a), "/v1/consents/"+k.Id.String()+"/revoke", nil, "If-Match", tag)
		},
	} {
		before := len(w.records())
		r := do()
		if r.status != 500 || r.problem(t) != "evidence-invalid" {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
		recs := w.records()
		if last := recs[len(recs)-1]; len(recs) != before+1 || last.Outcome != audit.Failed {
			t.Errorf("%s: %d records, %+v", name, len(recs)-before, last)
		}
	}
}
