package oversight

import (
	"testing"
	"time"

	"kluis/internal/audit"
	"kluis/meter"
)

func rules(t testing.TB) Rules {
	t.Helper()
	r := Rules{Zone: amsterdam(t), Working: DefaultHours()}
	if err := r.Check(); err != nil || r.Keep != DefaultKeep {
		t.Fatal(r, err)
	}
	return r
}

// TestTally: what counts as what, at whose hour, on which local day.
func TestTally(t *testing.T) {
	t.Parallel()
	r := rules(t)
	zone := r.Zone
	now := time.Date(2026, 6, 10, 18, 30, 0, 0, zone) // a Wednesday
	supplier, operator := gln(t, "8712000000011"), gln(t, "8712345000004")
	var eans []meter.EAN
	for _, s := range []string{"871687200000000010", "871687140000000019"} {
		e, err := meter.ParseEAN(s)
		if err != nil {
			t.Fatal(err)
		}
		eans = append(eans, e)
	}
	tally := NewTally(r)
	at := func(day, hour, minute int) time.Time { return time.Date(2026, 6, day, hour, minute, 0, 0, zone) }
	add := func(g meter.GLN, employee string, at time.Time, op audit.Operation, e meter.EAN, o audit.Outcome) {
		tally.Add(&audit.Record{Supplier: g, Employee: employee, At: at, Operation: op, EAN: e, Outcome: o}, now)
	}
	for _, o := range []audit.Outcome{audit.Given, audit.Partly, audit.Withheld, audit.NoRelation, audit.Failed, audit.Unchanged} {
		add(supplier, "", at(10, 3, 0), audit.Readings, eans[0], o)
	}
	add(supplier, "", at(10, 3, 59), audit.List, meter.EAN{}, audit.Given)
	add(supplier, "", at(10, 4, 0), audit.Changes, meter.EAN{}, audit.Given)
	add(supplier, "", now.Add(48*time.Hour), audit.List, meter.EAN{}, audit.Given)           // a clock that is wrong
	add(supplier, "", r.Oldest(now).Add(-time.Second), audit.List, meter.EAN{}, audit.Given) // of long ago

	add(operator, "jan", at(9, 21, 59), audit.Consents, eans[0], audit.Given)
	add(operator, "jan", at(9, 22, 0), audit.Consents, eans[0], audit.Given)
	add(operator, "jan", at(9, 22, 1), audit.AccessLog, eans[1], audit.Given)
	search := func(id byte, at time.Time, e meter.EAN, o audit.Outcome) {
		tally.Add(&audit.Record{InteractionID: [16]byte{id}, Supplier: operator, Employee: "jan", At: at, Operation: audit.Find, EAN: e, Outcome: o}, now)
	}
	search(1, at(9, 22, 2), eans[1], audit.Given) // one search, two metering points
	search(1, at(9, 22, 2), eans[0], audit.Given)
	search(2, at(9, 22, 3), meter.EAN{}, audit.NoRelation)
	search(3, at(9, 22, 3), eans[1], audit.Given) // again
	add(operator, "jan", at(9, 22, 4), audit.Oversee, meter.EAN{}, audit.Given)
	add(operator, "jan", at(10, 0, 30), audit.AccessLog, eans[1], audit.Refused) // the 9th in UTC
	add(operator, "jan", at(7, 12, 0), audit.AccessLog, eans[1], audit.Given)    // a Sunday

	type row struct {
		employee                                                          string
		day, hour                                                         int
		requests, given, refused, failed, points, searches, offHours, min int64
	}
	var got []row
	for _, h := range tally.Hours() {
		l := h.At.In(zone)
		last := h.LastAt.In(zone)
		if h.Requests != h.Given+h.Refused+h.Failed || last.Hour() != l.Hour() || (h.GLN == supplier) != (h.Employee == "") {
			t.Errorf("%+v", h)
		}
		got = append(got, row{h.Employee, l.Day(), l.Hour(), h.Requests, h.Given, h.Refused, h.Failed, h.Points, h.Searches, h.OffHours, int64(last.Minute())})
	}
	want := []row{
		{"", 10, 3, 7, 4, 2, 1, 6, 0, 0, 59},
		{"", 10, 4, 1, 1, 0, 0, 0, 0, 0, 0},
		{"", 10, 18, 1, 1, 0, 0, 0, 0, 0, 30},
		{"jan", 7, 12, 1, 1, 0, 0, 1, 0, 1, 0},
		{"jan", 9, 21, 1, 1, 0, 0, 1, 0, 0, 59},
		{"jan", 9, 22, 7, 6, 1, 0, 2, 3, 6, 4},
		{"jan", 10, 0, 1, 0, 1, 0, 1, 0, 1, 30},
	}
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%+v, want %+v", got[i], want[i])
		}
	}

	looks := tally.Looks()
	type look struct {
		day   string
		ean   meter.EAN
		found bool
	}
	wantLooks := []look{{"2026-06-07", eans[1], false}, {"2026-06-09", eans[1], false}, {"2026-06-09", eans[1], true},
		{"2026-06-09", eans[0], false}, {"2026-06-09", eans[0], true}, {"2026-06-10", eans[1], false}}
	if len(looks) != len(wantLooks) {
		t.Fatalf("%+v", looks)
	}
	for i, l := range looks {
		if l.Employee != "jan" || (look{l.Day.String(), l.EAN, l.Found}) != wantLooks[i] {
			t.Errorf("%+v, want %+v", l, wantLooks[i])
		}
	}
}

// TestRules: those that make no sense are refused.
func TestRules(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*Rules){
		"no zone":            func(r *Rules) { r.Zone = nil },
		"hours in reverse":   func(r *Rules) { r.Working.From, r.Working.To = r.Working.To, r.Working.From },
		"a day of 25 hours":  func(r *Rules) { r.Working.To = 25 * time.Hour },
		"nothing to compare": func(r *Rules) { r.Keep = MinKeep - 1 },
		"for ever":           func(r *Rules) { r.Keep = MaxKeep + 1 },
	} {
		r := rules(t)
		spoil(&r)
		if r.Check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
