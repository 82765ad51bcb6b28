package web

import (
	"bytes"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"kluis/meter"
	"kluis/openapi/client"
)

func TestLogFilter(t *testing.T) {
	t.Parallel()
	for query, wrong := range map[string]string{
		"": "", "from=2026-03-01&to=2026-03-01": "", "supplier=8712423000018&purpose=BILLING&class=intervals&show=all&cursor=AQw_-": "",
		"from=1-3-2026": "from", "to=x": "to", "from=2026-03-02&to=2026-03-01": "to", "supplier=8712423000019": "supplier", "supplier=x": "supplier",
		"purpose=CURIOSITY": "purpose", "class=identity": "class", "cursor=a/b": "cursor", "cursor=" + strings.Repeat("a", 129): "cursor", "occupancy=x": "occupancy",
	} {
		q := must(url.ParseQuery(query))
		f, errs := parseLogFilter(q)
		if wrong == "" && len(errs) > 0 || wrong != "" && (len(errs) != 1 || errs[wrong] == "") {
			t.Errorf("%q: %v", query, errs)
		}
		if wrong == "" && f.query().Encode() != q.Encode() {
			t.Errorf("%q comes back as %q", query, f.Query())
		}
	}
	f, _ := parseLogFilter(must(url.ParseQuery("from=2026-10-25&to=2026-10-25&supplier=8712423000018&cursor=AQ&occupancy=2024-05-01")))
	p := f.params(500)
	if p.From.String() != "2026-10-25" || p.To.String() != "2026-10-26" || *p.Supplier != "8712423000018" || *p.Cursor != "AQ" || p.Occupancy.String() != "2024-05-01" {
		t.Errorf("%+v", p)
	}
	if got := f.On(mustDay(t, "2026-03-29")).Query(); got != "?from=2026-03-29&occupancy=2024-05-01&supplier=8712423000018&to=2026-03-29" {
		t.Errorf("a day: %s", got)
	}
	if f.proofQuery("ab") != "?line=ab&occupancy=2024-05-01" || (logFilter{From: "2026-01-01"}).proofQuery("") != "" {
		t.Error("whose log it is")
	}
}

func logEntry(at string, op client.AccessLogEntryOperation, outcome client.AccessLogEntryOutcome) client.AccessLogEntry {
	e := client.AccessLogEntry{InteractionId: uuid.New(), At: must(time.Parse(time.RFC3339, at)), Operation: op, Outcome: outcome}
	e.Caller.Gln = "8712423000018"
	return e
}

func granted(field, from, to string, g client.Resolution, b client.LegalBasis) client.AccessLogGranted {
	return client.AccessLogGranted{Field: field, From: *apiDay(must(meter.ParseDay(from))), To: *apiDay(must(meter.ParseDay(to))), Granularity: g, LegalBasis: b}
}

func TestLogMatches(t *testing.T) {
	t.Parallel()
	profile := testProfile(t)
	billing := client.PurposeBILLING
	e := logEntry("2026-03-01T10:00:00Z", client.READINGS, client.GIVEN)
	e.Purpose, e.Granted = &billing, []client.AccessLogGranted{granted("import_low", "2026-02-01", "2026-03-01", client.P1D, client.LegalBasisSUPPLYDAILY)}
	looked := logEntry("2026-03-01T10:00:00Z", client.CONNECTION, client.GIVEN)
	for _, c := range []struct {
		f    logFilter
		e    client.AccessLogEntry
		want bool
	}{
		{logFilter{}, e, true}, {logFilter{}, looked, false}, {logFilter{All: true}, looked, true},
		{logFilter{Purpose: "BILLING"}, e, true}, {logFilter{Purpose: "MOVE"}, e, false}, {logFilter{Purpose: "BILLING", All: true}, looked, false},
		{logFilter{Class: "registers"}, e, true}, {logFilter{Class: "intervals"}, e, false}, {logFilter{Class: "registers", All: true}, looked, false},
	} {
		if got := c.f.matches(&c.e, profile); got != c.want {
			t.Errorf("%+v of %s: %v", c.f, c.e.Operation, got)
		}
	}
	e.Granted, e.Withheld = nil, []client.Withheld{{Field: "import_intervals"}}
	if !(logFilter{Class: "intervals"}).matches(&e, profile) {
		t.Error("what was asked for and not given is of its class too")
	}
}

// TestLogLines: given reads by themselves, all else folded by day; days and clocks
// are local, with the hour that comes twice told apart.
func TestLogLines(t *testing.T) {
	t.Parallel()
	profile := testProfile(t)
	basis := client.LegalBasisCONSENT
	given := func(at string) client.AccessLogEntry {
		e := logEntry(at, client.READINGS, client.GIVEN)
		e.Opened = 31
		e.Granted = []client.AccessLogGranted{granted("import_intervals", "2026-10-01", "2026-10-10", client.PT15M, basis), granted("export_intervals", "2026-10-05", "2026-10-20", client.PT15M, basis)}
		return e
	}
	refused := func(at string) client.AccessLogEntry { return logEntry(at, client.READINGS, client.REFUSED) }
	days := logDays([]client.AccessLogEntry{
		refused("2026-10-25T23:30:00Z"), // the 26th
		given("2026-10-25T01:30:00Z"),   // 02:30 CET
		refused("2026-10-25T01:10:00Z"),
		given("2026-10-25T00:30:00Z"), // 02:30 CEST
		refused("2026-10-24T22:10:00Z"),
		refused("2026-03-29T00:59:00Z"), // 01:59, before the hour that is not there
	}, profile)
	if len(days) != 3 || days[0].Day.String() != "2026-10-26" || len(days[1].Lines) != 3 || days[2].Day.String() != "2026-03-29" {
		t.Fatalf("%+v", days)
	}
	l := days[1].Lines
	if l[0].Clock != "02:30 CET" || l[2].Clock != "02:30 CEST" || days[2].Lines[0].Clock != "01:59" {
		t.Errorf("clocks %q, %q, %q", l[0].Clock, l[2].Clock, days[2].Lines[0].Clock)
	}
	if l[1].Times() != 2 || l[1].First != "00:10" || l[0].Times() != 1 {
		t.Errorf("folded %+v", l[1])
	}
	if g := l[0].Given; len(g) != 1 || g[0].Class != "intervals" || g[0].From.String() != "2026-10-01" || g[0].To.String() != "2026-10-19" {
		t.Errorf("given %+v", l[0].Given)
	}
	other := refused("2026-10-25T01:10:00Z")
	other.Caller.Gln = "8712345600020"
	if days := logDays([]client.AccessLogEntry{refused("2026-10-25T01:10:00Z"), other}, profile); len(days[0].Lines) != 2 {
		t.Error("two parties in one line")
	}
	if logDays(nil, profile) != nil {
		t.Error("days of nothing")
	}
}

func TestLogWords(t *testing.T) {
	t.Parallel()
	profile := testProfile(t)
	step := client.AccessLogEntryStep("GRANT")
	for _, op := range []client.AccessLogEntryOperation{client.READINGS, client.DRYRUN, client.CONSENTS, client.CONSENTSTEP, client.ACCESSLOG, client.CONNECTION, client.FIND} {
		for _, out := range []client.AccessLogEntryOutcome{client.GIVEN, client.PARTLY, client.WITHHELD, client.REFUSED, client.FAILED, client.UNCHANGED} {
			e := logEntry("2026-03-01T10:00:00Z", op, out)
			for range 2 {
				l := logLineOf(&e, profile)
				for _, key := range []string{l.What, l.Outcome} {
					if _, ok := allTexts[key]; !ok {
						t.Errorf("no text %q", key)
					}
				}
				if l.Kind == "" {
					t.Errorf("%s has no badge", out)
				}
				if op != client.CONSENTSTEP {
					break
				}
				e.Step = &step
			}
		}
	}
}

func TestCalendar(t *testing.T) {
	t.Parallel()
	today := mustDay(t, "2026-03-29") // the day is 23 hours long
	all := meter.DayRange{From: mustDay(t, "2020-01-01"), To: meter.MaxDay}
	find := func(c calendar, day string) calendarDay {
		for _, m := range c.Months {
			for _, w := range m.Weeks {
				for _, d := range w {
					if d.In && d.Day.String() == day {
						return d
					}
				}
			}
		}
		t.Fatalf("no %s", day)
		return calendarDay{}
	}
	counts := map[meter.Day]int{today: 1, today - 1: 4, mustDay(t, "2025-10-26"): 96, mustDay(t, "2025-03-31"): 7}
	c := calendarOf(counts, today, all, nil)
	if len(c.Months) != 12 || c.Months[0].Month.String() != "2025-04-01" || c.Total != 101 || c.Months[11].Total != 5 {
		t.Fatalf("%d months from %s, %d", len(c.Months), c.Months[0].Month, c.Total)
	}
	n := 0
	for _, m := range c.Months {
		for _, w := range m.Weeks {
			for i, d := range w {
				if d.In {
					n++
				}
				if int(d.Day.Start(time.UTC).Weekday()+6)%7 != i {
					t.Fatalf("%s stands in column %d", d.Day, i)
				}
			}
		}
	}
	if n != 365 {
		t.Errorf("%d days", n)
	}
	for day, want := range map[string]calendarDay{
		"2026-03-29": {Times: 1, Level: 1}, "2026-03-28": {Times: 4, Level: 2}, "2025-10-26": {Times: 96, Level: 4}, "2026-03-30": {State: dayFuture}, "2026-03-01": {},
	} {
		if d := find(c, day); d.Times != want.Times || d.Level != want.Level || d.State != want.State {
			t.Errorf("%s: %+v", day, d)
		}
	}
	moved := meter.DayRange{From: mustDay(t, "2025-11-01"), To: mustDay(t, "2026-02-01")}
	reaches := mustDay(t, "2025-12-01")
	c = calendarOf(map[meter.Day]int{mustDay(t, "2026-03-01"): 2, mustDay(t, "2025-11-05"): 3}, today, moved, &reaches)
	for day, want := range map[string]calendarDay{
		"2025-10-31": {State: dayBefore}, "2025-11-05": {State: dayUnknown}, "2025-12-01": {}, "2026-02-01": {State: dayBefore},
		"2026-03-01": {Times: 2, Level: 2}, // asked later, for days of then
	} {
		if d := find(c, day); d.Times != want.Times || d.Level != want.Level || d.State != want.State {
			t.Errorf("%s: %+v", day, d)
		}
	}
	c.mark("2025-12-01")
	if !find(c, "2025-12-01").Here || find(c, "2025-12-02").Here {
		t.Error("the chosen day")
	}
	if levelOf(0) != 0 || levelOf(1) != 1 || levelOf(5) != 3 || levelOf(19) != 3 || levelOf(20) != 4 {
		t.Error("levels")
	}
}

// TestLogShowsMarkupAsText: names and reasons are others' words.
func TestLogShowsMarkupAsText(t *testing.T) {
	t.Parallel()
	evil := `"><script>alert(1)</script>`
	e := logEntry("2026-03-01T10:00:00Z", client.READINGS, client.REFUSED)
	e.Caller.Name, e.Caller.Reason, e.Caller.Employee = &evil, &evil, &evil
	profile := testProfile(t)
	p := &Portal{profile: profile, static: must(newStatic())}
	if err := p.parseTemplates(); err != nil {
		t.Fatal(err)
	}
	for _, lang := range languages {
		for name, list := range map[string]logPart{
			"one": {Days: logDays([]client.AccessLogEntry{e}, profile), Found: 1, Next: "AQ"}, "none": {}, "none yet": {Next: "AQ", Back: e.At}, "unreadable": {Unreadable: []string{evil}},
		} {
			var b bytes.Buffer
			vw := &view{visit: &visit{Lang: lang}, Data: logData{Path: "/c/x/log", List: list}}
			if err := p.templates[lang].pages["log"].ExecuteTemplate(&b, "list", vw); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(b.String(), "<script") {
				t.Errorf("%s: markup: %s", name, b.String())
			}
			if more := strings.Contains(b.String(), "data-older"); more != (list.Next != "") {
				t.Errorf("%s: a way on: %v", name, more)
			}
		}
	}
}

func TestCursorOf(t *testing.T) {
	t.Parallel()
	for link, want := range map[string]string{
		"https://api/v1/metering-points/871687200000000010/access-log?cursor=AQ_-9&limit=10": "AQ_-9", "https://api/x": "", "::": "", "https://api/x?cursor=a%2Fb": "",
	} {
		if got := cursorOf(link); got != want {
			t.Errorf("%s: %q", fmt.Sprint(link), got)
		}
	}
}
