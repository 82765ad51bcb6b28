package web

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"kluis/meter"
	"kluis/openapi/client"
)

func stepped(at string, state client.ConsentState) client.Consent {
	return client.Consent{State: state, Granularity: client.PT15M, Purpose: client.PurposeENERGYMANAGEMENT, Supplier: "8712423000018", ValidUntil: must(time.Parse(time.RFC3339, at)),
		Steps: []client.ConsentStep{{At: must(time.Parse(time.RFC3339, at)), Step: "REQUESTED"}, {At: must(time.Parse(time.RFC3339, at)).AddDate(0, 2, 0), Step: "REVOKED"}}}
}

// TestConsentsIn: a customer is told of the consents they were asked for, and of
// nobody else's; days begin at local midnight, also when summer time does.
func TestConsentsIn(t *testing.T) {
	t.Parallel()
	zone := testProfile(t).Location()
	living := meter.DayRange{From: mustDay(t, "2026-03-29"), To: mustDay(t, "2026-10-25")}
	for at, want := range map[string]int{
		"2026-03-28T22:59:59Z": 0, "2026-03-28T23:00:00Z": 1, "2026-10-24T21:59:59Z": 1, "2026-10-24T22:00:00Z": 0, "2026-03-01T00:00:00Z": 0,
	} {
		if got := consentsIn([]client.Consent{stepped(at, client.ConsentStateREVOKED)}, living, zone); len(got) != want {
			t.Errorf("%s: %d", at, len(got))
		}
	}
	if consentsIn([]client.Consent{{}}, living, zone) != nil {
		t.Error("a consent that nobody was asked for")
	}
}

func TestLivingIn(t *testing.T) {
	t.Parallel()
	day := func(s string) *meter.Day { d := mustDay(t, s); return &d }
	c := &client.Connection{Occupancies: []client.DayPeriod{{From: *apiDay(*day("2020-01-01")), To: apiDay(*day("2024-05-01"))}, {From: *apiDay(*day("2024-06-01"))}}}
	for _, x := range []struct {
		from  *meter.Day
		today string
		want  string // first day; "": nobody
	}{
		{nil, "2026-01-01", "2024-06-01"}, {nil, "2024-04-30", "2020-01-01"}, {nil, "2024-05-01", ""}, {nil, "2019-01-01", ""},
		{day("2020-01-01"), "2026-01-01", "2020-01-01"}, {day("2020-01-02"), "2026-01-01", ""},
	} {
		got, ok := livingIn(c, x.from, *day(x.today))
		if ok != (x.want != "") || ok && got.From.String() != x.want {
			t.Errorf("%v on %s: %v, %v", x.from, x.today, got, ok)
		}
	}
}

// TestRightsIn: rights are cut to a customer's own days.
func TestRightsIn(t *testing.T) {
	t.Parallel()
	living := meter.DayRange{From: mustDay(t, "2026-01-01"), To: mustDay(t, "2026-07-01")}
	until := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	row := func(from, to string) supplierRights {
		return supplierRights{GLN: "8712423000018", Any: true, Cells: []rightCell{{column: columns[0], Grounds: []ground{{Basis: client.LegalBasisCONSENT, From: mustDay(t, from), To: mustDay(t, to), Until: &until, Open: true}}}}}
	}
	in := []supplierRights{row("2025-01-01", "2025-12-31"), row("2026-07-01", "2026-08-01"), row("2025-06-01", "2026-09-01")}
	got := rightsIn(in, living, false)
	if len(got) != 1 {
		t.Fatalf("%+v", got)
	}
	g := got[0].Cells[0].Grounds[0]
	if g.From.String() != "2026-01-01" || g.To.String() != "2026-06-30" || g.Until != nil || g.Open {
		t.Errorf("%+v", g)
	}
	if in[0].Cells[0].Grounds == nil {
		t.Error("the rows of others were changed")
	}
	if got := rightsIn(in, living, true); got[0].Cells[0].Grounds[0].Until == nil {
		t.Error("who lives there is told until when")
	}
	missing := supplierRights{Missing: &Problem{}}
	if got := rightsIn([]supplierRights{missing, {Present: true}, {}}, living, true); len(got) != 2 {
		t.Errorf("%+v", got)
	}
}

func TestCutLines(t *testing.T) {
	t.Parallel()
	at := func(n int) time.Time { return time.Unix(int64(n), 0) }
	make3 := func() []logDay {
		return []logDay{{Lines: []logLine{{At: at(9)}, {At: at(8)}}}, {Lines: []logLine{{At: at(7)}}}, {Lines: []logLine{{At: at(6)}, {At: at(5)}}}}
	}
	for most, want := range map[int]struct {
		days int
		at   int
		cut  bool
	}{9: {3, 5, false}, 5: {3, 5, false}, 4: {3, 6, true}, 3: {2, 7, true}, 2: {1, 8, true}, 1: {1, 9, true}} {
		days := make3()
		got, cut := cutLines(&days, most)
		if len(days) != want.days || cut != want.cut || !got.Equal(at(want.at)) {
			t.Errorf("%d: %d days, %v, %v", most, len(days), got, cut)
		}
	}
	var none []logDay
	if _, cut := cutLines(&none, 5); cut {
		t.Error("nothing is cut")
	}
}

func TestPaperReaders(t *testing.T) {
	t.Parallel()
	profile := testProfile(t)
	billing := client.PurposeBILLING
	read := func(at, gln string, outcome client.AccessLogEntryOutcome) client.AccessLogEntry {
		e := logEntry(at, client.READINGS, outcome)
		e.Caller.Gln, e.Purpose = gln, &billing
		e.Granted = []client.AccessLogGranted{granted("import_low", "2026-02-01", "2026-03-01", client.P1D, client.LegalBasisSUPPLYDAILY)}
		return e
	}
	got := paperReaders([]client.AccessLogEntry{
		read("2026-03-03T00:00:00Z", "1", client.GIVEN), read("2026-03-02T00:00:00Z", "2", client.PARTLY), read("2026-03-01T00:00:00Z", "2", client.GIVEN),
		read("2026-03-01T00:00:00Z", "3", client.REFUSED), logEntry("2026-03-01T00:00:00Z", client.CONNECTION, client.GIVEN),
	}, profile)
	if len(got) != 2 || got[0].GLN != "2" || got[0].Times != 2 || len(got[0].Uses) != 1 || got[0].Last.Day() != 2 || got[0].Uses[0] != (paperUse{billing, client.LegalBasisSUPPLYDAILY, "registers"}) {
		t.Errorf("%+v", got)
	}
}

// TestPaper: in either language, with nothing on it, and with names that are markup;
// who lived there before is not told who lives there now.
func TestPaper(t *testing.T) {
	t.Parallel()
	profile := testProfile(t)
	p := &Portal{profile: profile, static: must(newStatic())}
	if err := p.parseTemplates(); err != nil {
		t.Fatal(err)
	}
	evil := `"><script>alert(1)</script>`
	read := logEntry("2026-03-01T10:00:00Z", client.READINGS, client.GIVEN)
	read.Caller.Name, read.Opened = &evil, 3
	read.Granted = []client.AccessLogGranted{granted("import_low", "2026-02-01", "2026-03-01", client.P1D, client.LegalBasisSUPPLYDAILY)}
	cutAt := read.At
	living := meter.DayRange{From: mustDay(t, "2024-05-01"), To: meter.MaxDay}
	last := mustDay(t, "2026-06-30")
	c := &client.Connection{Ean: ean, Commodity: "electricity"}
	full := paper{
		Made: read.At, From: living.From, To: last, Connection: c, Present: true, Living: living, LivingTo: &last, Reference: evil,
		Identity: &client.ConnectionIdentity{State: client.ConnectionIdentityState("GIVEN"), Name: &evil, Address: &client.Address{Street: evil, HouseNumber: "7", Addition: &evil, City: evil}},
		Consents: []consentRow{{Consent: stepped("2026-03-01T00:00:00Z", client.ConsentStateACTIVE), SupplierName: evil}},
		Readers:  paperReaders([]client.AccessLogEntry{read}, profile), Days: logDays([]client.AccessLogEntry{read}, profile), Found: 1,
		Unreadable: []string{evil}, CutAt: &cutAt,
	}
	empty := paper{Made: read.At, To: last, Connection: c, Living: living}
	away := paper{Made: read.At, To: last, Connection: c, Living: living, ConsentsMissing: &Problem{}, LogMissing: &Problem{}, Rights: []supplierRights{{GLN: "1", Missing: &Problem{}}}}
	for _, lang := range languages {
		for name, s := range map[string]paper{"full": full, "empty": empty, "away": away} {
			var b bytes.Buffer
			if err := p.templates[lang].pages["statement"].ExecuteTemplate(&b, "paper", &view{visit: &visit{Lang: lang}, Data: &s}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			html := b.String()
			if strings.Contains(html, "<script") || !strings.Contains(html, allTexts.in(lang, "paper.rights.1")) {
				t.Errorf("%s, %s: %s", name, lang, html)
			}
			if cut := strings.Contains(html, "data-cut"); cut != (name == "full") {
				t.Errorf("%s says it is cut: %v", name, cut)
			}
			if missing := strings.Count(html, allTexts.in(lang, "paper.missing")); missing != map[string]int{"away": 3}[name] {
				t.Errorf("%s says %d times that something is missing", name, missing)
			}
			if person := strings.Contains(html, allTexts.in(lang, "paper.customer")+"</dt>"); person != (name == "full") {
				t.Errorf("%s names somebody: %v", name, person)
			}
		}
	}
	for _, s := range []client.ConsentState{"REQUESTED", "ACTIVE", "REJECTED", "REVOKED", "EXPIRED", "LAPSED", "ENDED_BY_MOVE"} {
		if _, ok := allTexts["paper.consent."+string(s)]; !ok {
			t.Errorf("no word for a consent that is %s", s)
		}
	}
	for key := range allTexts {
		if reason, ok := strings.CutPrefix(key, "reason."); ok {
			if _, ok := allTexts["paper.reason."+reason]; !ok {
				t.Errorf("no word for the reason %s", reason)
			}
		}
	}
}
