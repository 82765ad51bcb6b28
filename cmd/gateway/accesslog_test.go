package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/internal/testing/stafftest"
	"kluis/meter"
	"kluis/openapi/client"
	"kluis/server"
)

// logTap puts faults between the server and the access log.
type logTap struct {
	*tap
	log server.AccessLog
}

func (l logTap) AccessLog(ctx context.Context, e meter.EAN, after server.LogPlace, since time.Time, limit int) ([]server.LogRow, bool, error) {
	l.note("access-log")
	if l.logged != nil {
		if err := l.logged(ctx); err != nil {
			return nil, false, err
		}
	}
	return l.log.AccessLog(ctx, e, after, since, limit)
}

func (l logTap) Suppliers(ctx context.Context, glns []meter.GLN) (map[meter.GLN][]byte, error) {
	l.note("suppliers")
	if l.names != nil {
		if err := l.names(ctx); err != nil {
			return nil, err
		}
	}
	return l.log.Suppliers(ctx, glns)
}

// logPath is a request for the access log; pairs of names and values.
func logPath(e meter.EAN, query ...string) string {
	q := url.Values{}
	for i := 0; i+1 < len(query); i += 2 {
		q.Set(query[i], query[i+1])
	}
	return "/v1/metering-points/" + e.String() + "/access-log?" + q.Encode()
}

// logAs asks for the access log in a media type.
func (w *world) logAs(media, token, path string) reply {
	w.t.Helper()
	if w.portal.client == nil {
		w.portal.client = w.http(w.portal.cert)
	}
	return w.do(w.portal.client, http.MethodGet, path, func(r *http.Request) {
		bearer(token)(r)
		r.Header.Set("Accept", media)
	})
}

func (w *world) logOf(r reply) client.AccessLog {
	w.t.Helper()
	if r.status != 200 {
		w.t.Fatalf("status %d: %s", r.status, r.body)
	}
	var a client.AccessLog
	holdsTo(w.t, "AccessLog", r.body, &a)
	if a.InteractionId.String() != r.header.Get("X-Interaction-Id") || r.header.Get("Vary") != "Accept" || r.header.Get("Cache-Control") != "no-store" {
		w.t.Errorf("interaction %s; headers %v", a.InteractionId, r.header)
	}
	return a
}

// says is an entry in short.
func says(e client.AccessLogEntry) string {
	s := fmt.Sprintf("%s %s by %s", e.Operation, e.Outcome, e.Caller.Gln)
	if e.Step != nil {
		s += " " + string(*e.Step)
	}
	if e.Caller.Employee != nil {
		s += " " + *e.Caller.Employee + ": " + *e.Caller.Reason
	}
	return s
}

// TestAccessLog: what suppliers and employees asked for is shown as it was, with
// what a cryptoserver says it opened; and looking is recorded and shown too.
func TestAccessLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e, other := w.customer(1, w.a, w.consent(w.a)), w.customer(2, w.a)
	w.fill(e)
	given := w.answerOf(w.get(w.a, w.path(e, "purpose", "BILLING", "class", "registers", "resolution", "P1M")))
	intervals := w.answerOf(w.get(w.a, w.path(e, "class", "intervals")))
	if len(given.Series) == 0 || len(intervals.Series) == 0 {
		t.Fatal("nothing to show")
	}
	w.accessOf(w.get(w.a, accessPath(e)))
	if r := w.get(w.b, w.path(e)); r.status != 404 {
		t.Fatalf("%d", r.status)
	}
	w.get(w.a, w.path(other)) // another metering point's
	w.get(w.a, "/v1/metering-points")
	asked, _ := w.request(w.a, e, nil)
	tag := w.asStaff(w.view(e, authz.Agent), "/v1/consents/"+asked.Id.String()).header.Get("ETag")
	if r := w.answer(asked, tag, authz.ActionReject); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}

	token := w.staffToken("agent-17", authz.Agent, authz.Errand{Kind: authz.ErrandView, EAN: e, Reason: "zaak 4711"})
	w.tap.taken()
	r := w.asStaff(token, logPath(e))
	if calls := w.tap.taken(); calls != "supplier legal-file access-log suppliers record" {
		t.Errorf("calls %q", calls)
	}
	a := w.logOf(r)
	a0, op := w.a.gln.String(), w.portal.gln.String()
	employee := stafftest.Subject("agent-17")
	want := []string{
		"CONSENT_STEP GIVEN by " + op + " REJECT " + employee + ": customer on the line",
		"CONSENTS GIVEN by " + op + " " + employee + ": customer on the line",
		"CONSENT_STEP GIVEN by " + a0 + " REQUEST",
		"READINGS REFUSED by " + w.b.gln.String(),
		"DRY_RUN GIVEN by " + a0,
		"READINGS GIVEN by " + a0,
		"READINGS GIVEN by " + a0,
	}
	var got []string
	for _, x := range a.Entries {
		got = append(got, says(x))
	}
	if !slices.Equal(got, want) || a.Links.Next != nil || len(a.Unreadable) != 0 || a.Ean != e.String() || a.TimeZone != "Europe/Amsterdam" ||
		a.Occupancy.From.String() != "2020-01-01" || a.Occupancy.To != nil {
		t.Errorf("%+v\n%s", a, strings.Join(got, "\n"))
	}
	for i, x := range a.Entries {
		if x.Caller.Name == nil || *x.Caller.Name != "Supplier" || time.Since(x.At) > time.Minute || time.Until(x.At) > time.Minute {
			t.Errorf("entry %d: %+v", i, x)
		}
	}
	if x := a.Entries[0]; x.ConsentId == nil || *x.ConsentId != asked.Id || x.Purpose == nil || x.From != nil || x.Opened != 0 {
		t.Errorf("%+v", x)
	}
	if x := a.Entries[3]; x.From == nil || x.From.String() != w.days().From.String() || x.To.String() != w.days().To.String() || len(x.Granted) != 0 || x.Opened != 0 {
		t.Errorf("%+v", x)
	}
	if x := a.Entries[4]; len(x.Granted) == 0 || x.Opened != 0 {
		t.Errorf("%+v", x)
	}
	// What was opened is what the cryptoservers' receipts say.
	x := a.Entries[5]
	if x.InteractionId != intervals.InteractionId || x.Opened != w.days().Len()*len(intervals.Series) || *x.Purpose != client.PurposeENERGYMANAGEMENT {
		t.Errorf("%+v", x)
	}
	for i, g := range x.Granted {
		s := intervals.Series[i]
		if g.Field != s.Field || g.LegalBasis != s.LegalBasis || g.Rule != s.Rule || g.From.String() != w.days().From.String() || g.To.String() != w.days().To.String() {
			t.Errorf("%+v", g)
		}
	}
	if x := a.Entries[6]; x.InteractionId != given.InteractionId || x.Opened != 2*len(given.Series) {
		t.Errorf("%+v", x)
	}
	rec := w.lastRecord()
	if rec.Operation != audit.AccessLog || rec.Outcome != audit.Given || rec.EAN != e || rec.Employee != employee || rec.Reason != "zaak 4711" ||
		uuid.UUID(rec.InteractionID) != a.InteractionId || rec.Days.From != day("2020-01-01") || rec.FileVersion == 0 {
		t.Errorf("record %+v", rec)
	}
	// Looking shows from then on.
	if again := w.logOf(w.asStaff(token, logPath(e))); len(again.Entries) != 8 || says(again.Entries[0]) != "ACCESS_LOG GIVEN by "+op+" "+employee+": zaak 4711" {
		t.Errorf("%+v", again.Entries[0])
	}
	for name, c := range map[string]struct {
		query []string
		want  int
	}{
		"a supplier":       {[]string{"supplier", a0}, 4},
		"an unknown one":   {[]string{"supplier", "8712345000004"}, 0},
		"today":            {[]string{"from", meter.DayOf(time.Now(), w.profile.Location()).String()}, -1},
		"before yesterday": {[]string{"to", (meter.DayOf(time.Now(), w.profile.Location()) - 1).String()}, 0},
		"the occupancy":    {[]string{"occupancy", "2020-01-01", "limit", "1000"}, -1},
	} {
		if got := w.logOf(w.asStaff(token, logPath(e, c.query...))); c.want >= 0 && len(got.Entries) != c.want || c.want < 0 && len(got.Entries) < 8 {
			t.Errorf("%s: %d entries", name, len(got.Entries))
		}
	}
	// Every line can be proven and explained by its id: it is that of a record.
	for _, x := range a.Entries {
		if !slices.ContainsFunc(w.records(), func(r audit.Record) bool { return uuid.UUID(r.InteractionID) == x.InteractionId }) {
			t.Errorf("no record of %s", x.InteractionId)
		}
	}
	// What was withheld is what the caller was told.
	told := w.answerOf(w.get(w.a, w.path(e, "purpose", "BILLING", "fields", "import_intervals")))
	if x := w.logOf(w.asStaff(token, logPath(e, "supplier", a0))).Entries[0]; x.InteractionId != told.InteractionId || len(told.Withheld) == 0 ||
		fmt.Sprint(x.Withheld) != fmt.Sprint(told.Withheld) {
		t.Errorf("withheld %+v, want %+v", x.Withheld, told.Withheld)
	}
}

// TestAccessLogPages: links lead through all of it while others come in.
func TestAccessLogPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	var want []uuid.UUID
	for range 25 {
		r := w.get(w.a, w.path(e, "fields", "import_low"))
		want = append(want, uuid.MustParse(r.header.Get("X-Interaction-Id")))
	}
	slices.Reverse(want)
	token := w.view(e, authz.Auditor)
	path := logPath(e, "limit", "10", "supplier", w.a.gln.String())
	var got []uuid.UUID
	for pages := 1; ; pages++ {
		a := w.logOf(w.asStaff(token, path))
		for _, x := range a.Entries {
			got = append(got, x.InteractionId)
		}
		if a.Links.Next == nil {
			if pages != 3 {
				t.Errorf("%d pages", pages)
			}
			break
		}
		w.get(w.a, w.path(e, "fields", "import_low"))
		next := must(url.Parse(*a.Links.Next))
		if next.Scheme+"://"+next.Host != "https://api.test" || next.Query().Get("occupancy") != "2020-01-01" || next.Query().Get("supplier") == "" {
			t.Errorf("next %s", next)
		}
		path = next.RequestURI()
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d requests, want %d", len(got), len(want))
	}
	// A cursor of another metering point is a place in time: it shows nothing
	// that is not shown anyway, and nothing of the other.
	foreign := w.customer(2, w.a)
	w.get(w.a, w.path(foreign))
	made := must(url.Parse(path)).Query().Get("cursor")
	if a := w.logOf(w.asStaff(w.view(foreign, authz.Agent), logPath(foreign, "cursor", made))); len(a.Entries) != 0 {
		t.Errorf("%+v", a.Entries)
	}
}

// TestAccessLogStatement: the page and the table hold what the JSON holds, and
// come with the headers that keep them harmless.
func TestAccessLogStatement(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.register(w.a, func(f *authz.SupplierFacts) { f.Name = `<b>"Licht" & =Warmte` })
	e := w.customer(1, w.a)
	w.fill(e)
	w.answerOf(w.get(w.a, w.path(e, "purpose", "BILLING", "class", "registers", "resolution", "P1M")))
	if r := w.get(w.b, w.path(e)); r.status != 404 {
		t.Fatalf("%d", r.status)
	}
	token := w.staffToken("agent-17", authz.Agent, authz.Errand{Kind: authz.ErrandView, EAN: e, Reason: "<script>alert(1)</script>"})
	w.logOf(w.asStaff(token, logPath(e))) // so that the reason is in it
	for lang, title := range map[string]string{"nl": "Wie vroeg de gegevens van uw energiemeter op", "en": "Who asked for the data of your energy meter", "": "Who asked"} {
		path := logPath(e)
		if lang != "" {
			path = logPath(e, "lang", lang)
		}
		r := w.logAs("text/html,application/xhtml+xml,*/*;q=0.8", token, path)
		page := string(r.body)
		if r.status != 200 || r.header.Get("Content-Type") != "text/html; charset=utf-8" || !strings.Contains(page, title) ||
			!strings.Contains(r.header.Get("Content-Security-Policy"), "default-src 'none'") || r.header.Get("X-Content-Type-Options") != "nosniff" ||
			r.header.Get("Cache-Control") != "no-store" || r.header.Get("Vary") != "Accept" {
			t.Errorf("%s: %d %v", lang, r.status, r.header)
		}
		for _, want := range []string{e.String(), "&lt;b&gt;&#34;Licht&#34; &amp; =Warmte", "&lt;script&gt;", w.portal.gln.String(), "agent-17", r.header.Get("X-Interaction-Id")} {
			if !strings.Contains(page, want) {
				t.Errorf("%s: the page does not hold %q", lang, want)
			}
		}
		if strings.Contains(page, "<script") || strings.Contains(page, "<b>") {
			t.Errorf("%s: markup of others", lang)
		}
		if rec := w.lastRecord(); rec.Operation != audit.AccessLog || rec.Outcome != audit.Given {
			t.Errorf("record %+v", rec)
		}
	}
	j := w.logOf(w.logAs("application/json", token, logPath(e, "supplier", w.a.gln.String())))
	r := w.logAs("text/csv", token, logPath(e, "supplier", w.a.gln.String()))
	lines, err := csv.NewReader(bytes.NewReader(r.body)).ReadAll()
	runs := 0
	for _, x := range j.Entries {
		runs += max(1, len(x.Granted))
	}
	if err != nil || r.status != 200 || r.header.Get("Content-Type") != "text/csv; charset=utf-8; header=present" || len(lines) != 1+runs || runs < 2 ||
		lines[1][0] != j.Entries[0].InteractionId.String() || !strings.HasPrefix(r.header.Get("Content-Disposition"), "attachment; filename=\"access-log-") ||
		strings.Contains(r.header.Get("Content-Disposition"), e.String()) {
		t.Errorf("%d %v %q, %v", r.status, r.header, lines, err)
	}
	before := len(w.records())
	if r := w.logAs("application/pdf", token, logPath(e)); r.status != 406 || r.problem(t) != "not-acceptable" || len(w.records()) != before {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := w.logAs("text/csv", token, logPath(e, "limit", "10")); r.status != 400 || r.problem(t) != "invalid-parameters" || !strings.Contains(string(r.body), "/query/limit") {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// recordMany stores requests like one that was made, each a millisecond before
// the one before it, as if they had come in: what a supplier can do in a day. It
// returns their ids, latest first.
func (w *world) recordMany(like audit.Record, n int) []string {
	w.t.Helper()
	ids, at := make([]string, n), make([]time.Time, n)
	records, receipts := make([][]byte, n), make([][]byte, n)
	for i := range n {
		r := like
		r.At = like.At.Add(-time.Duration(i+1) * time.Millisecond)
		r.InteractionID = uuid.NewSHA1(uuid.Nil, fmt.Append(nil, like.InteractionID, i))
		receipts[i] = []byte{}
		if len(like.Receipt) > 0 {
			rc := must(envelope.ParseReceipt(like.Receipt))
			rc.InteractionID = r.InteractionID
			r.Receipt = rc.Encode()
			receipts[i] = r.Receipt
		}
		ids[i], at[i], records[i] = uuid.UUID(r.InteractionID).String(), r.At, must(r.Encode())
	}
	w.sql(`INSERT INTO access_log (ean, recorded_at, interaction_id, gln, outcome, record, receipt, salt)
		SELECT $1, a, i, $2, $3, r, c, decode(repeat('00', 16), 'hex') FROM unnest($4::timestamptz[], $5::uuid[], $6::bytea[], $7::bytea[]) AS x (a, i, r, c)`,
		like.EAN.Int64(), like.Supplier.Int64(), int(like.Outcome), pq.Array(at), pq.Array(ids), pq.ByteaArray(records), pq.ByteaArray(receipts))
	return ids
}

// TestAccessLogFlood: a party with nothing to do there, that asks for readings
// thousands of times, hides no read; and a statement of more reads than it holds
// goes on where its link says.
func TestAccessLogFlood(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{timeout: 30 * time.Second})
	e := w.customer(1, w.a)
	w.fill(e)
	given := w.answerOf(w.get(w.a, w.path(e, "purpose", "BILLING", "class", "registers", "resolution", "P1M")))
	read := w.lastRecord()
	if r := w.get(w.b, w.path(e)); r.status != 404 {
		t.Fatalf("%d", r.status)
	}
	refused := w.lastRecord()
	w.recordMany(refused, 20_000)
	token := w.view(e, authz.Agent)
	for _, media := range []string{"text/html", "text/csv"} {
		r := w.logAs(media, token, logPath(e, "lang", "nl"))
		if r.status != 200 || r.header.Get("Link") != "" || !bytes.Contains(r.body, []byte(given.InteractionId.String())) || len(r.body) > 60_000 {
			t.Errorf("%s: %d, %d bytes, Link %q", media, r.status, len(r.body), r.header.Get("Link"))
		}
		// Around midnight they are of two days.
		if today := meter.DayOf(refused.At, w.profile.Location()); today == meter.DayOf(refused.At.Add(-time.Minute), w.profile.Location()) &&
			!bytes.Contains(r.body, []byte(map[string]string{"text/html": "<strong>20001 keer</strong>", "text/csv": ",20001,"}[media])) {
			t.Errorf("%s: %s", media, r.body)
		}
	}

	ids := append([]string{given.InteractionId.String()}, w.recordMany(read, 12_000)...)
	for _, media := range []string{"text/html", "text/csv"} {
		path, seen, pages := logPath(e, "supplier", w.a.gln.String(), "lang", "en"), map[string]int{}, 0
		for path != "" && pages < 4 {
			r := w.logAs(media, token, path)
			if r.status != 200 {
				t.Fatalf("%d %.300s", r.status, r.body)
			}
			pages++
			for _, m := range regexp.MustCompile(`(?m)(?:^|Reference <span class="number">)([0-9a-f-]{36})`).FindAllSubmatch(r.body, -1) {
				seen[string(m[1])]++
			}
			path = ""
			if link, ok := strings.CutSuffix(r.header.Get("Link"), `>; rel="next"`); ok {
				u := must(url.Parse(strings.TrimPrefix(link, "<")))
				if q := u.Query(); !bytes.Contains(r.body, []byte(q.Get("cursor"))) || q.Get("supplier") != w.a.gln.String() || q.Get("occupancy") != "2020-01-01" {
					t.Errorf("%s: goes on at %s", media, u)
				}
				path = u.RequestURI()
			}
		}
		if pages != 2 {
			t.Errorf("%s: %d pages", media, pages)
		}
		for _, id := range ids {
			if seen[id] == 0 || media == "text/html" && seen[id] != 1 {
				t.Fatalf("%s: %s is told %d times", media, id, seen[id])
			}
		}
	}
}

// TestAccessLogOfOneCustomer: who moved in is shown nothing of who moved out,
// and the other way round.
func TestAccessLogOfOneCustomer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	w.fill(e)
	middle := w.days().From + 10
	w.get(w.a, w.path(e, "fields", "import_low", "purpose", "BILLING"))
	w.legalFile(e, meter.Electricity, authz.SetOccupancy{Days: meter.DayRange{From: middle, To: meter.MaxDay}})
	whole := w.get(w.a, w.path(e, "class", "registers"))
	early := w.get(w.a, w.path(e, "class", "registers", "to", middle.String()))
	token := w.view(e, authz.Supervisor)
	for name, c := range map[string]struct {
		query  []string
		days   meter.DayRange
		others []string
	}{
		"in":  {nil, meter.DayRange{From: middle, To: meter.MaxDay}, []string{early.header.Get("X-Interaction-Id")}},
		"out": {[]string{"occupancy", "2020-01-01"}, meter.DayRange{From: day("2020-01-01"), To: middle}, nil},
	} {
		a := w.logOf(w.asStaff(token, logPath(e, append([]string{"supplier", w.a.gln.String()}, c.query...)...)))
		if len(a.Entries) < 2 || a.Occupancy.From.String() != c.days.From.String() {
			t.Errorf("%s: %+v", name, a)
		}
		for _, x := range a.Entries {
			if slices.Contains(c.others, x.InteractionId.String()) {
				t.Errorf("%s: shown the other's request", name)
			}
			for _, run := range [][2]string{{x.From.String(), x.To.String()}} {
				if d := (meter.DayRange{From: day(run[0]), To: day(run[1])}); d.Intersect(c.days) != d {
					t.Errorf("%s: shown days %v", name, d)
				}
			}
			for _, g := range x.Granted {
				if d := (meter.DayRange{From: day(g.From.String()), To: day(g.To.String())}); d.Intersect(c.days) != d {
					t.Errorf("%s: shown days %v", name, d)
				}
			}
		}
		if !slices.ContainsFunc(a.Entries, func(x client.AccessLogEntry) bool {
			return x.InteractionId.String() == whole.header.Get("X-Interaction-Id")
		}) {
			t.Errorf("%s: not shown what concerns both", name)
		}
	}
	// No such occupancy: said, and recorded.
	for _, o := range []string{(middle + 1).String(), "2019-12-31"} {
		r := w.asStaff(token, logPath(e, "occupancy", o))
		if r.status != 400 || r.problem(t) != "invalid-parameters" || !strings.Contains(string(r.body), "/query/occupancy") {
			t.Errorf("%d %s", r.status, r.body)
		}
		if rec := w.lastRecord(); rec.Operation != audit.AccessLog || rec.Outcome != audit.Refused || !rec.Days.Empty() {
			t.Errorf("record %+v", rec)
		}
	}
}

// TestAccessLogCallers: suppliers get none; an employee that of the errand's
// metering point.
func TestAccessLogCallers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e, other := w.customer(1, w.a), w.customer(2, w.a)
	if r := w.get(w.a, logPath(e)); r.status != 403 || r.problem(t) != "not-permitted" {
		t.Errorf("a supplier: %d %s", r.status, r.body)
	}
	reads := w.staffToken("agent-17", authz.Agent, authz.Errand{Kind: authz.ErrandReadings, EAN: e, Days: w.days(), Fields: []meter.FieldCode{w.field("import_low")}})
	if r := w.asStaff(reads, logPath(e)); r.status != 403 || r.problem(t) != "not-permitted" {
		t.Errorf("another errand: %d %s", r.status, r.body)
	}
	before := len(w.records())
	w.tap.taken()
	if r := w.asStaff(w.view(e, authz.Agent), logPath(other)); r.status != 403 || r.problem(t) != "not-permitted" {
		t.Errorf("another metering point: %d %s", r.status, r.body)
	}
	if calls := w.tap.taken(); calls != "supplier record" {
		t.Errorf("calls %q", calls)
	}
	if rec := w.lastRecord(); len(w.records()) != before+1 || rec.EAN != other || rec.Operation != audit.AccessLog || rec.Outcome != audit.NoRelation {
		t.Errorf("record %+v", rec)
	}
	unknown := w.ean(99)
	if r := w.asStaff(w.view(unknown, authz.Agent), logPath(unknown)); r.status != 404 || r.problem(t) != "metering-point-not-found" {
		t.Errorf("an unknown one: %d %s", r.status, r.body)
	}
	if rec := w.lastRecord(); rec.EAN != unknown || rec.Outcome != audit.NoRelation {
		t.Errorf("record %+v", rec)
	}
	for _, role := range []authz.Role{authz.Agent, authz.Supervisor, authz.Auditor} {
		w.logOf(w.asStaff(w.view(e, role), logPath(e)))
	}
}

// TestAccessLogTampered: a row that was changed is told of, the rest is shown,
// and the operator is warned.
func TestAccessLogTampered(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	w.fill(e)
	var ids []string
	for range 4 {
		ids = append(ids, w.get(w.a, w.path(e, "fields", "import_low", "purpose", "BILLING", "resolution", "P1M")).header.Get("X-Interaction-Id"))
	}
	w.sql(`UPDATE access_log SET record = set_bit(record, 2000, 1 - get_bit(record, 2000)) WHERE interaction_id = $1`, ids[0])
	w.sql(`UPDATE access_log SET receipt = (SELECT receipt FROM access_log WHERE interaction_id = $2) WHERE interaction_id = $1`, ids[1], ids[2])
	token := w.view(e, authz.Agent)
	a := w.logOf(w.asStaff(token, logPath(e)))
	if len(a.Entries) != 2 || len(a.Unreadable) != 2 || a.Unreadable[0].String() != ids[1] || a.Unreadable[1].String() != ids[0] {
		t.Errorf("%+v", a)
	}
	if got := w.metric("kluis_gateway_evidence_invalid_total", "kind", "access_record"); got != 2 {
		t.Errorf("metric %v", got)
	}
	if log := w.log.String(); strings.Count(log, "access record does not verify") != 2 || !strings.Contains(log, `"record":"`+ids[0]) || strings.Contains(log, e.String()) {
		t.Errorf("log %s", log)
	}
	if page := string(w.logAs("text/html", token, logPath(e)).body); !strings.Contains(page, ids[0]) || !strings.Contains(page, "do not verify") {
		t.Error("the statement says nothing of it")
	}
	// A party whose record does not verify has no name.
	w.sql(`UPDATE supplier SET record = set_bit(record, 400, 1 - get_bit(record, 400)) WHERE gln = $1`, w.a.gln.Int64())
	a = w.logOf(w.asStaff(token, logPath(e, "supplier", w.a.gln.String())))
	if len(a.Entries) != 2 || a.Entries[0].Caller.Name != nil || w.metric("kluis_gateway_evidence_invalid_total", "kind", "supplier") != 1 {
		t.Errorf("%+v", a.Entries)
	}
}

// TestAccessLogFaults: with the database gone, or too slow, or when the request
// cannot be recorded, nothing leaves.
func TestAccessLogFaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	w.get(w.a, w.path(e))
	token := w.view(e, authz.Agent)
	gone := func(context.Context) error { return errFault }
	var mu sync.Mutex
	second := func() func(context.Context) error {
		n := 0
		return func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			if n++; n > 1 {
				return errFault
			}
			return nil
		}
	}
	for name, c := range map[string]struct {
		set      func()
		status   int
		problem  string
		recorded bool
	}{
		"no legal file": {func() { w.tap.facts = gone }, 503, "database-unavailable", false},
		"no log":        {func() { w.tap.logged = gone }, 503, "database-unavailable", true},
		"slow log":      {func() { w.tap.logged = hang }, 504, "deadline-exceeded", true},
		"no names":      {func() { w.tap.names = gone }, 503, "database-unavailable", true},
		"no record":     {func() { w.tap.record = func(context.Context, audit.Record, server.Recorder) error { return errFault } }, 503, "record-not-written", false},
		"in the middle": {func() {
			w.sql(`INSERT INTO access_log (ean, interaction_id, gln, outcome, record, receipt, salt)
				SELECT ean, gen_random_uuid(), gln, outcome, record, receipt, salt FROM (SELECT * FROM access_log WHERE ean = $1 LIMIT 1) l, generate_series(1, 600)`, e.Int64())
			w.tap.logged = second()
		}, 503, "database-unavailable", true},
	} {
		for _, media := range []string{"application/json", "text/html", "text/csv"} {
			if name == "in the middle" && media == "application/json" {
				continue // the first batch fills a page
			}
			before := len(w.rawRecords(e))
			w.tap.facts, w.tap.logged, w.tap.names, w.tap.record = nil, nil, nil, nil
			c.set()
			before = max(before, len(w.rawRecords(e)))
			r := w.logAs(media, token, logPath(e))
			if r.status != c.status || r.problem(t) != c.problem || r.header.Get("Retry-After") == "" || bytes.Contains(r.body, []byte(w.a.gln.String())) {
				t.Errorf("%s, %s: %d %.300s", name, media, r.status, r.body)
			}
			recs := w.rawRecords(e)
			if len(recs)-before != map[bool]int{false: 0, true: 1}[c.recorded] {
				t.Errorf("%s, %s: %d records", name, media, len(recs)-before)
			}
			if last := recs[len(recs)-1]; c.recorded && (last.Operation != audit.AccessLog || last.Outcome != audit.Failed || !last.Days.Empty()) {
				t.Errorf("%s, %s: %+v", name, media, last)
			}
		}
	}
}

// With the table locked away the real database answers late, and cannot take the
// record either: nothing leaves. Unlocked, it serves as before.
func TestAccessLogLocked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{timeout: 3 * time.Second})
	e := w.customer(1, w.a)
	w.get(w.a, w.path(e))
	token := w.view(e, authz.Agent)
	tx, err := w.db.Open(t, "kluis_owner").BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(t.Context(), `LOCK TABLE access_log IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	if r := w.logAs("text/html", token, logPath(e)); r.status != 504 || r.problem(t) != "deadline-exceeded" || bytes.Contains(r.body, []byte(w.a.gln.String())) {
		t.Errorf("%d %s", r.status, r.body)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if a := w.logOf(w.asStaff(token, logPath(e))); len(a.Entries) == 0 {
		t.Errorf("%+v", a)
	}
}

// rawRecords are those of a metering point, in the order in which they came.
func (w *world) rawRecords(e meter.EAN) []audit.Record {
	w.t.Helper()
	return slices.DeleteFunc(w.records(), func(r audit.Record) bool { return r.EAN != e })
}

func TestAccessLogParameters(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	token := w.view(e, authz.Agent)
	before := len(w.records())
	for name, c := range map[string]struct {
		path string
		want []string
	}{
		"reversed":        {logPath(e, "from", "2026-02-01", "to", "2026-01-01"), []string{"/query/to"}},
		"no day":          {logPath(e, "from", "2026-02-30"), []string{"/query/from"}},
		"no GLN":          {logPath(e, "supplier", "8712423000019"), []string{"/query/supplier"}},
		"language":        {logPath(e, "lang", "de"), []string{"/query/lang"}},
		"limit":           {logPath(e, "limit", "9"), []string{"/query/limit"}},
		"cursor":          {logPath(e, "cursor", "AQAA"), []string{"/query/cursor"}},
		"unknown":         {logPath(e, "page", "1"), []string{"/query"}},
		"twice":           {logPath(e) + "lang=nl&lang=en", []string{"/query/lang"}},
		"several at once": {logPath(e, "limit", "x", "lang", "", "occupancy", "yesterday"), []string{"/query/limit", "/query/lang", "/query/occupancy"}},
	} {
		r := w.asStaff(token, c.path)
		if r.status != 400 || r.problem(t) != "invalid-parameters" {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
		for _, pointer := range c.want {
			if !strings.Contains(string(r.body), `"`+pointer+`"`) {
				t.Errorf("%s: no %s in %s", name, pointer, r.body)
			}
		}
	}
	if n := len(w.records()); n != before {
		t.Errorf("%d records", n-before)
	}
}

// TestStepPutDownToAnother: a step that an employee took, and that a captured
// gateway also records as another's, is told as taken by the first alone, as
// often as it was sent again.
func TestStepPutDownToAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	k, _ := w.request(w.a, e, nil)
	tag := w.asStaff(w.view(e, authz.Agent), "/v1/consents/"+k.Id.String()).header.Get("ETag")
	w.consentOf(w.answer(k, tag, authz.ActionGrant), 200)
	taken := w.lastRecord()
	store := func(change func(*audit.Record)) string {
		r := taken
		r.InteractionID, r.At = uuid.New(), time.Now().UTC().Truncate(time.Microsecond)
		change(&r)
		id := uuid.UUID(r.InteractionID).String()
		if _, err := w.db.Open(t, "kluis_gateway").Exec(`INSERT INTO access_log (ean, interaction_id, gln, outcome, record, receipt, salt) VALUES ($1, $2, $3, $4, $5, '', decode(repeat('00',16),'hex'))`,
			e.Int64(), id, r.Supplier.Int64(), int64(audit.Given), must(r.Encode())); err != nil {
			t.Fatal(err)
		}
		return id
	}
	another := store(func(r *audit.Record) { r.Employee, r.Reason = stafftest.Subject("agent-99"), "asked by nobody" })
	revoked := store(func(r *audit.Record) { r.Action = authz.ActionRevoke })
	again := store(func(*audit.Record) {})
	a := w.logOf(w.asStaff(w.view(e, authz.Agent), logPath(e)))
	var unreadable []string
	for _, id := range a.Unreadable {
		unreadable = append(unreadable, id.String())
	}
	if len(unreadable) != 2 || !slices.Contains(unreadable, another) || !slices.Contains(unreadable, revoked) {
		t.Errorf("unreadable %v", unreadable)
	}
	steps := 0
	for _, x := range a.Entries {
		if strings.Contains(says(x), "agent-99") {
			t.Errorf("told: %s", says(x))
		}
		if x.InteractionId.String() == again || x.InteractionId == uuid.UUID(taken.InteractionID) {
			steps++
		}
	}
	if steps != 2 {
		t.Errorf("%d of the step itself and its repeat", steps)
	}
}

// TestAnothersKey: an employee who sends the step that another one took, under
// the same key, is refused: it is no repeat, and the record would say it was.
func TestAnothersKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	k, _ := w.request(w.a, e, nil)
	tag := w.asStaff(w.view(e, authz.Agent), "/v1/consents/"+k.Id.String()).header.Get("ETag")
	key := newKey()
	for i, c := range []struct {
		employee string
		status   int
		outcome  audit.Outcome
	}{{"agent-17", 200, audit.Given}, {"agent-17", 200, audit.Given}, {"agent-18", 422, audit.Refused}} {
		token := w.staffToken(c.employee, authz.Agent, errandFor(k, authz.ActionReject, ""))
		r := w.post(w.portal, token, "/v1/consents/"+k.Id.String()+"/reject", nil, "If-Match", tag, "Idempotency-Key", key)
		if rec := w.lastRecord(); r.status != c.status || rec.Outcome != c.outcome || c.status == 422 && r.problem(t) != "idempotency-key-reused" {
			t.Errorf("%d: %d %s, record %+v", i, r.status, r.body, rec)
		}
	}
	if a := w.logOf(w.asStaff(w.view(e, authz.Agent), logPath(e))); len(a.Unreadable) != 0 {
		t.Errorf("unreadable %v", a.Unreadable)
	}
}
