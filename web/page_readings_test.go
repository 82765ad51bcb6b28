package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/meter"
	"kluis/openapi/client"
)

// quarters is a day of quarter-hours of 0.250 each, with a gap at one of them.
func quarters(day meter.Day, zone *time.Location, gap int) client.DayValues {
	start := day.Start(zone)
	d := client.DayValues{Start: start}
	for i := range int((day + 1).Start(zone).Sub(start) / (15 * time.Minute)) {
		v := "0.250"
		if i == gap {
			d.Values = append(d.Values, nil)
			continue
		}
		d.Values = append(d.Values, &v)
	}
	return d
}

func TestShownOf(t *testing.T) {
	t.Parallel()
	profile := testProfile(t)
	zone := profile.Location()
	first := mustDay(t, "2026-03-28")
	asked := readingsAsked{days: meter.DayRange{From: first, To: first + 4}, detail: details[0]}
	estimated := quarters(first+2, zone, -1)
	estimated.Quality = &[]client.QualityRun{{Index: 0, Count: 2, Quality: client.ESTIMATED}}
	v := &client.Readings{
		Series: []client.Series{
			{Field: "import_intervals", Unit: "kWh", Resolution: client.PT15M, ReadingKind: client.ReadingKindCONSUMPTION, ExpectedCount: 380, DeliveredCount: 283,
				Days: []client.DayValues{quarters(first, zone, 5), quarters(first+1, zone, -1), estimated}},
			{Field: "export_intervals", Unit: "kWh", Resolution: client.PT15M, ReadingKind: client.ReadingKindCONSUMPTION, ExpectedCount: 380, DeliveredCount: 96,
				Days: []client.DayValues{quarters(first, zone, -1)}},
		},
		Withheld: []client.Withheld{
			{Field: "import_intervals", From: *apiDay(first + 3), To: *apiDay(first + 4), Reason: client.OPTEDOUT},
			{Field: "export_intervals", From: *apiDay(first + 3), To: *apiDay(first + 4), Reason: client.OPTEDOUT},
		},
	}
	shown, err := shownOf(v, asked, profile, "nl")
	if err != nil {
		t.Fatal(err)
	}
	if shown.Nothing || len(shown.Charts) != 1 || len(shown.Withheld) != 1 || shown.Withheld[0].From != shown.Withheld[0].To {
		t.Fatalf("charts %d, withheld %v", len(shown.Charts), shown.Withheld)
	}
	c := shown.Charts[0]
	if !c.Daily || len(c.Rows) != 4 {
		t.Fatalf("%d rows for four days, of which one has nothing", len(c.Rows))
	}
	for i, want := range []struct {
		text  string
		part  bool
		hours int
		est   bool
	}{{"23,750", true, 0, false}, {"23,000", false, 23, false}, {"24,000", false, 0, true}, {"", false, 0, false}} {
		r := c.Rows[i]
		if r.Cells[0].Text != want.text || r.Cells[0].Partial != want.part || r.Hours != want.hours || r.Estimated != want.est {
			t.Errorf("row %d: %+v, want %+v", i, r, want)
		}
	}
	if c.Rows[1].Cells[1].Text != "" || c.Series[0].Total != "70,750" || c.Series[1].Total != "24,000" || c.Series[0].Missing != 97 {
		t.Errorf("series %+v", c.Series)
	}
	if len(c.Data.Marks) != 1 || c.Data.Marks[0].Text != "23 h" || len(c.Data.Times) != 96+92+96 || len(c.Data.Series[1].Values) != len(c.Data.Times) {
		t.Errorf("%d marks, %d times", len(c.Data.Marks), len(c.Data.Times))
	}
	if c.Data.Series[0].Values[5] != nil || *c.Data.Series[0].Values[4] != 250 || c.Data.Series[1].Values[200] != nil {
		t.Error("a gap is drawn as a value, or a value as a gap")
	}

	// A short period lists each value; on the long day of autumn the hour from two
	// to three is there twice.
	long := mustDay(t, "2026-10-25")
	asked.days = meter.DayRange{From: long, To: long + 1}
	v = &client.Readings{Series: []client.Series{{Field: "import_intervals", Unit: "kWh", Resolution: client.PT15M, ReadingKind: client.ReadingKindCONSUMPTION,
		ExpectedCount: 100, DeliveredCount: 100, Days: []client.DayValues{quarters(long, zone, -1)}}}}
	if shown, err = shownOf(v, asked, profile, "en"); err != nil {
		t.Fatal(err)
	}
	if c = shown.Charts[0]; c.Daily || len(c.Rows) != 100 || c.Rows[8].Start.In(zone).Hour() != 2 || c.Rows[12].Start.In(zone).Hour() != 2 || c.Data.Marks[0].Text != "25 h" {
		t.Errorf("the day of 25 hours: %d rows", len(c.Rows))
	}

	bad := "a lot"
	v.Series[0].Days[0].Values[0] = &bad
	if _, err := shownOf(v, asked, profile, "en"); err == nil {
		t.Error("what is no value is shown")
	}
	if shown, err := shownOf(&client.Readings{}, asked, profile, "en"); err != nil || !shown.Nothing {
		t.Error("nothing at all is not said")
	}
}

func TestReadingsForm(t *testing.T) {
	t.Parallel()
	today := mustDay(t, "2026-04-02")
	good := readingsForm{From: "2025-04-01", To: "2026-04-01", Detail: "finest", Reason: "ticket-1"}
	a, errs := good.parse(today)
	if len(errs) > 0 || a.days.Len() != 366 || a.detail.Resolution != "" {
		t.Errorf("a year and a day: %v, %+v", errs, a)
	}
	for field, f := range map[string]readingsForm{
		"from":   {From: "yesterday", To: "2026-04-01", Detail: "day", Reason: "r"},
		"to":     {From: "2026-04-01", To: "2026-03-31", Detail: "day", Reason: "r"},
		"detail": {From: "2026-04-01", To: "2026-04-01", Detail: "second", Reason: "r"},
		"reason": {From: "2026-04-01", To: "2026-04-01", Detail: "day", Reason: "  "},
	} {
		if _, errs := f.parse(today); len(errs) != 1 || errs[field] == "" {
			t.Errorf("a form that is wrong in %s is told %v", field, errs)
		}
	}
	for _, f := range []readingsForm{
		{From: "2026-04-01", To: "2026-04-02", Detail: "day", Reason: "r"}, // today is not over
		{From: "2025-03-31", To: "2026-04-01", Detail: "day", Reason: "r"}, // 367 days
	} {
		if _, errs := f.parse(today); errs["to"] == "" {
			t.Errorf("%s to %s is taken", f.From, f.To)
		}
	}
	for _, d := range details {
		if _, ok := allTexts["readings.detail."+d.Key]; !ok {
			t.Errorf("no text for %s", d.Key)
		}
	}
	for _, f := range testProfile(t).Fields(meter.Electricity) {
		if _, ok := allTexts[fmt.Sprintf("field.%s", f.Name)]; !ok && f.Class != meter.Identity {
			t.Errorf("no word for the field %s", f.Name)
		}
	}
}

func TestRunsOf(t *testing.T) {
	t.Parallel()
	for _, times := range [][]int64{{}, {7}, {7, 9}, {0, 900, 1800, 9000, 9900, 10800, 90000}, {0, 1, 10, 11, 20}} {
		var back []int64
		for _, r := range runsOf(times) {
			for i := range r[2] {
				back = append(back, r[0]+i*r[1])
			}
		}
		if !slices.Equal(back, times) {
			t.Errorf("%v comes back as %v", times, back)
		}
	}
}

// TestReadingsStayAsked: when nothing can be opened, the form is there as it was
// filled in, with why; so it is for a file, and when it took too long.
func TestReadingsStayAsked(t *testing.T) {
	t.Parallel()
	o := newOffice(t) // there is no API
	b := o.signIn("eva")
	path := b.openCase() + "/readings"
	if p := b.get(path); p.StatusCode != http.StatusServiceUnavailable || p.problem() != "api-away" || !strings.Contains(p.body, `name="reason"`) {
		t.Errorf("the form: %s, %s", p.Status, p.problem())
	}
	yesterday := meter.DayOf(o.now(), o.portal.profile.Location()) - 1
	form := url.Values{"from": {(yesterday - 2).String()}, "to": {yesterday.String()}, "detail": {"hour"}, "reason": {`ticket "<4712>`}}
	asForm := func(body, problem string) {
		t.Helper()
		for _, want := range []string{
			`data-problem="` + problem + `"`, `name="from" required value="` + form.Get("from") + `"`, `name="to" required value="` + form.Get("to") + `"`,
			`<option value="hour" selected>`, `value="ticket &#34;&lt;4712&gt;"`,
		} {
			if !strings.Contains(body, want) {
				t.Errorf("%s: no %s", problem, want)
			}
		}
	}
	for _, to := range []string{path, path + "/csv"} {
		p := b.post(to, form)
		if p.StatusCode != http.StatusServiceUnavailable || !strings.HasPrefix(p.Header.Get("Content-Type"), "text/html") {
			t.Errorf("%s %s", p.Status, p.Header.Get("Content-Type"))
		}
		asForm(p.body, "api-away")
	}
	if p := b.get(path + "/csv"); p.Header.Get("Location") != path {
		t.Errorf("in another language: %s", p.Status)
	}

	ctx, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel()
	v := &visit{Lang: "nl", Theme: "auto", Session: &session{Employee: Employee{Role: Agent}}, Case: &Case{ID: "x", EAN: must(meter.ParseEAN(ean))}}
	r := httptest.NewRequestWithContext(context.WithValue(ctx, visitKey{}, v), "POST", "/c/x/readings", nil)
	r.PostForm = form
	w := httptest.NewRecorder()
	if err := o.portal.openReadings(w, r); err != nil || w.Code != http.StatusGatewayTimeout {
		t.Errorf("too long: %d, %v", w.Code, err)
	}
	asForm(w.Body.String(), "deadline-exceeded")

	// Who must sign in first, must.
	v.Session = nil
	if err := o.portal.openReadings(httptest.NewRecorder(), r); !errors.Is(err, errSignIn) {
		t.Errorf("without a session: %v", err)
	}
}
