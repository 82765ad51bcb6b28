package web

import (
	"testing"
	"time"

	openapi_types "github.com/oapi-codegen/runtime/types"

	"kluis/openapi/client"
)

func date(y int, m time.Month, d int) openapi_types.Date {
	return openapi_types.Date{Time: time.Date(y, m, d, 0, 0, 0, 0, time.UTC)}
}

// TestRightsOf: a column says what it rests on itself; where nothing lasting gives
// exactly that, which finer column does; and the read of a single day gives no more.
func TestRightsOf(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	granted := func(field string, g client.Resolution, b client.LegalBasis, p client.Purpose) client.AccessGranted {
		return client.AccessGranted{Field: field, Granularity: g, LegalBasis: b, Purpose: p, From: date(2026, 1, 1), To: date(2026, 11, 1)}
	}
	a := &client.Access{Granted: []client.AccessGranted{
		granted("import_low", client.P1D, client.LegalBasisSUPPLYDAILY, client.PurposeENERGYMANAGEMENT),
		granted("import_normal", client.P1D, client.LegalBasisSUPPLYDAILY, client.PurposeENERGYMANAGEMENT),
		granted("import_low", client.P1D, client.LegalBasisSWITCH, client.PurposeSWITCH),
		{Field: "import_low", Granularity: client.P1D, LegalBasis: client.LegalBasisSWITCH, Purpose: client.PurposeSWITCH, From: date(2026, 5, 1), To: date(2026, 5, 2)},
		granted("import_intervals", client.PT1H, client.LegalBasisCONSENT, client.PurposeENERGYMANAGEMENT),
	}}
	name := "<b>Stroom</b>"
	s := client.SupplierName{Gln: "8712000000011", Name: &name}
	end := date(2027, 1, 1)
	c := &client.Connection{Supply: []client.SupplyPeriod{{Supplier: s.Gln, From: date(2026, 1, 1), To: &end}}}
	until := time.Date(2027, 6, 1, 0, 0, 0, 0, time.UTC)
	consents := []client.Consent{{Supplier: s.Gln, State: client.ConsentStateACTIVE, Classes: []client.FieldClass{client.Intervals}, Granularity: client.PT1H, ValidUntil: until}}
	row := rightsOf(a, s, c, consents, testProfile(t), now)
	if !row.Present || !row.Any || row.Name != name {
		t.Fatalf("row %+v", row)
	}
	for i, want := range []struct {
		lasting, single int
		via             client.Resolution
	}{{1, 0, client.P1D}, {1, 2, ""}, {1, 0, client.PT1H}, {1, 0, ""}, {0, 0, ""}} {
		cell := row.Cells[i]
		if len(cell.Lasting()) != want.lasting || len(cell.Single()) != want.single || cell.Via != want.via {
			t.Errorf("%s %s: %d lasting, %d single, via %q, want %+v", cell.Class, cell.Granularity, len(cell.Lasting()), len(cell.Single()), cell.Via, want)
		}
	}
	if g := row.Cells[1].Lasting()[0]; g.Until == nil || !g.Until.Equal(time.Date(2026, 12, 31, 23, 0, 0, 0, time.UTC)) {
		t.Errorf("what the supply gives ends with it: %v", g.Until)
	}
	if g := row.Cells[3].Grounds[0]; g.Until == nil || !g.Until.Equal(until) {
		t.Errorf("what the consent gives ends with it: %v", g.Until)
	}
	if finest := row.Finest(); len(finest) != 2 || finest[0].Granularity != client.P1D || finest[1].Granularity != client.PT1H {
		t.Errorf("at a glance: %+v", finest)
	}
	if days := row.SingleDays(); len(days) != 2 || days[0].Basis != client.LegalBasisSWITCH {
		t.Errorf("single days: %+v", days)
	}
}

func TestTimelineOf(t *testing.T) {
	t.Parallel()
	today := mustDay(t, "2026-11-23")
	zone := testProfile(t).Location()
	name := "Stroom"
	moved := date(2026, 5, 1)
	c := &client.Connection{
		Supply:      []client.SupplyPeriod{{Supplier: "8712000000011", From: date(2020, 1, 1), To: &moved}, {Supplier: "8712000000028", From: moved}},
		Occupancies: []client.DayPeriod{{From: date(2026, 5, 1)}},
		Suppliers:   []client.SupplierName{{Gln: "8712000000011", Name: &name}},
	}
	from := time.Date(2026, 6, 1, 0, 0, 0, 0, zone)
	consent := client.Consent{Supplier: "8712000000028", ValidFrom: &from, ValidUntil: time.Date(2027, 6, 1, 0, 0, 0, 0, zone), State: client.ConsentStateACTIVE}
	line := timelineOf(c, []client.Consent{consent, consent, {Supplier: "8712000000028"}}, today, zone)
	var kinds []string
	for _, r := range line.Rows {
		if r.First {
			kinds = append(kinds, r.Kind)
		}
		end := 0
		for _, b := range r.Bars {
			if b.X < end || b.Width <= 0 || b.X+b.Width > timelineWidth {
				t.Errorf("%s: a bar at %d, %d wide, after %d", r.Kind, b.X, b.Width, end)
			}
			end = b.X + b.Width
		}
	}
	if len(kinds) != 3 || len(line.Rows) != 4 { // the two consents overlap: two lanes
		t.Errorf("%d rows of %v", len(line.Rows), kinds)
	}
	if line.From != today.AddMonths(-12*timelineYears) {
		t.Errorf("from %s", line.From)
	}
	if b := line.Rows[0].Bars[0]; b.X != 0 || b.Name != name || *b.To != mustDay(t, "2026-04-30") {
		t.Errorf("what began before is cut at the edge: %+v", b)
	}
	for _, y := range line.Years {
		if y.Label == (y.X > line.Now-timelineWord && y.X < line.Now+timelineWord) {
			t.Errorf("%d at %d, today at %d: label %v", y.Year, y.X, line.Now, y.Label)
		}
	}
	if empty := timelineOf(&client.Connection{}, nil, today, zone); len(empty.Rows) != 0 {
		t.Errorf("nothing makes %d rows", len(empty.Rows))
	}
}
