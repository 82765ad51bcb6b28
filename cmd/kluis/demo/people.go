package demo

import (
	"context"
	"fmt"

	"kluis/cmd/kluis/backend"
	"kluis/ingest"
	"kluis/internal/config"
	"kluis/meter"
)

// resident is who lives at a metering point. All of it is invented.
type resident struct {
	name, street, number, addition, postcode, city string
}

// residents of the metering points with electricity, in the order of the plan.
// Two share a house number, and one has a name that a page must not take for a
// part of itself.
var residents = []resident{
	{"M. van Dijk", "Wilgenlaan", "3", "", "1234AB", "Nieuwe Waarden"},
	{"A. Yılmaz", "Wilgenlaan", "5", "", "1234AB", "Nieuwe Waarden"},
	{"J.P. de Groot-Visser", "Wilgenlaan", "7", "", "1234AB", "Nieuwe Waarden"},
	{"F. el Amrani", "Kerkpad", "118", "2 hoog", "1234CD", "Nieuwe Waarden"},
	{"S. Jansen", "'t Zand", "1", "", "1235AA", "Oudedijk"},
	{"K. Wójcik", "'t Zand", "14", "bis", "1235AA", "Oudedijk"},
	{"T. Bakker", "Molenweg", "26", "", "1235BC", "Oudedijk"},
	{"L. Ramdin", "Molenweg", "28", "", "1235BC", "Oudedijk"},
	{"B. Postma", "Havenkade", "12", "A", "1236ZK", "Sint Elfershaven"},
	{"N. Nguyễn", "Havenkade", "12", "B", "1236ZK", "Sint Elfershaven"},
	{"W. ten Brink", "Havenkade", "40", "", "1236ZK", "Sint Elfershaven"},
	{`<b onmouseover="alert('x')">R. O'Neill</b> & Zn.`, `Laan van "Rust" & Vrede`, "9", "<i>", "1236ZL", "Sint Elfershaven"},
	{"C. Verhoeven", "Zeedijk", "201", "", "1237GH", "Nieuwe Waarden"},
	{"H. Smit", "Zeedijk", "203", "", "1237GH", "Nieuwe Waarden"},
}

// movedOut is who lived before where a customer moved.
var movedOut = resident{"P. Hoekstra", "Zeedijk", "201", "", "1237GH", "Nieuwe Waarden"}

// residentsOf says who lives at a metering point of the plan, one for each
// occupancy, in order. Gas is at the address of the electricity in the same
// place; what is reserved for imports is in a street of its own.
func (pl *plan) residentsOf(n int) []resident {
	pt, at := pl.points[n], n
	electricity := 0
	for _, p := range pl.points {
		if p.readings && p.commodity == meter.Electricity {
			electricity++
		}
	}
	switch {
	case !pt.readings:
		at -= len(pl.points)
		return []resident{{"Proefwoning", "Meetstraat", fmt.Sprint(-at), "", "1238MS", "Nieuwe Waarden"}}
	case pt.commodity == meter.Gas:
		at -= electricity
	}
	who := residents[at]
	if len(pt.occupied) == 2 {
		return []resident{movedOut, who}
	}
	return []resident{who}
}

// people stores who lives where, once.
func (d *demo) people(ctx context.Context, operator config.Operator) error {
	if d.progress.People {
		return nil
	}
	var lines []ingest.PersonLine
	for n, pt := range d.plan.points {
		for i, r := range d.plan.residentsOf(n) {
			p, err := r.person(d.profile)
			if err != nil {
				return fmt.Errorf("resident %d: %w", n+1, err)
			}
			lines = append(lines, ingest.PersonLine{Line: len(lines) + 1, Customer: ingest.Customer{EAN: pt.ean, From: pt.occupied[i].From}, Person: p})
		}
	}
	in, err := backend.OpenIngest(ctx, operator)
	if err != nil {
		return err
	}
	defer in.Close()
	people, err := in.People()
	if err != nil {
		return err
	}
	if _, err := people.Store(ctx, lines, nil); err != nil {
		return fmt.Errorf("storing names and addresses: %w", err)
	}
	d.say("names and addresses of %d customers", len(lines))
	d.progress.People = true
	return d.save(d.progress)
}

func (r resident) person(p *meter.Profile) (meter.Person, error) {
	out := meter.Person{Name: r.name, Address: meter.Address{Street: r.street, Addition: r.addition, City: r.city}}
	var err error
	if out.Address.Postcode, err = p.ParsePostcode(r.postcode); err != nil {
		return meter.Person{}, err
	}
	if out.Address.HouseNumber, err = meter.ParseHouseNumber(r.number); err != nil {
		return meter.Person{}, err
	}
	return out, out.Check()
}
