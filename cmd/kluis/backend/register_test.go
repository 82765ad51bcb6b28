package backend

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"

	"kluis/authz"
	"kluis/meter"
)

const (
	heading = "ean,commodity,supplier,supply_from,supply_to,moved_in,moved_out\n"
	first   = "871687200000000010"
	second  = "871687200000000027"
	third   = "871687200000000034"
	alpha   = "8712000000011"
	beta    = "8712000000028"
)

var loc = func() *time.Location {
	l, err := time.LoadLocation("Europe/Amsterdam")
	if err != nil {
		panic(err)
	}
	return l
}()

func day(s string) meter.Day {
	if s == "" {
		return meter.MaxDay
	}
	d, err := meter.ParseDay(s)
	if err != nil {
		panic(err)
	}
	return d
}

func gln(s string) meter.GLN {
	g, err := meter.ParseGLN(s)
	if err != nil {
		panic(err)
	}
	return g
}

func span2(from, to string) meter.DayRange { return meter.DayRange{From: day(from), To: day(to)} }

// readAll reads an extract, checked; err is of the file as a whole.
func readAll(in io.Reader) (points []*registerPoint, err error) {
	r, err := newRegisterReader(in)
	if err != nil {
		return nil, err
	}
	for {
		p, err := r.point()
		if errors.Is(err, io.EOF) {
			return points, nil
		}
		if err != nil {
			return points, err
		}
		p.check()
		points = append(points, p)
	}
}

func TestRegisterReader(t *testing.T) {
	t.Parallel()
	want := []registerRow{
		{line: 2, kind: meter.Electricity, supplier: gln(alpha), supply: span2("2024-01-01", "2025-03-01"), occupied: span2("2023-05-01", "")},
		{line: 3, kind: meter.Electricity, supplier: gln(beta), supply: span2("2025-03-01", "")},
		{line: 4, occupied: span2("2022-01-01", "2023-01-01")},
	}
	for name, text := range map[string]string{
		"plain":      heading + first + ",electricity," + alpha + ",2024-01-01,2025-03-01,2023-05-01,\n" + first + ",electricity," + beta + ",2025-03-01,,,\n" + second + ",,,,,2022-01-01,2023-01-01\n",
		"semicolons": strings.ReplaceAll(heading+first+",electricity,"+alpha+",2024-01-01,2025-03-01,2023-05-01,\n"+first+",electricity,"+beta+",2025-03-01,,,\n"+second+",,,,,2022-01-01,2023-01-01\n", ",", ";"),
		"CRLF, BOM, quotes, no last line end, blank line at the end of a line's worth": "\xef\xbb\xbf" + strings.ReplaceAll(heading+`"`+first+`",electricity,"`+alpha+"\",2024-01-01,2025-03-01,2023-05-01,\n"+first+",\"electricity\","+beta+",2025-03-01,,\"\",\n"+second+",,,,,2022-01-01,2023-01-01", "\n", "\r\n"),
		"another order": "moved_out,supply_to,moved_in,supplier,ean,supply_from,commodity\n" +
			",2025-03-01,2023-05-01," + alpha + "," + first + ",2024-01-01,electricity\n,,," + beta + "," + first + ",2025-03-01,electricity\n2023-01-01,,2022-01-01,," + second + ",,\n\n",
	} {
		for _, in := range []io.Reader{strings.NewReader(text), iotest.OneByteReader(strings.NewReader(text))} {
			points, err := readAll(in)
			if err != nil || len(points) != 2 || len(points[0].rows) != 2 || len(points[1].rows) != 1 || len(points[0].bad)+len(points[1].bad) > 0 {
				t.Fatalf("%s: %v, %+v", name, err, points)
			}
			if points[0].ean.String() != first || points[1].ean.String() != second || points[0].line != 2 || points[1].line != 4 {
				t.Errorf("%s: %+v", name, points)
			}
			for i, r := range append(points[0].rows, points[1].rows...) {
				r.at, r.ean = [columnCount]int{}, meter.EAN{}
				if r != want[i] {
					t.Errorf("%s: row %d is %+v, want %+v", name, i, r, want[i])
				}
			}
		}
	}
}

// TestRegisterRefused: what is wrong with the file as a whole.
func TestRegisterRefused(t *testing.T) {
	t.Parallel()
	good := first + ",electricity," + alpha + ",2024-01-01,,,\n"
	for name, c := range map[string]struct{ text, want string }{
		"empty":                {"", "it is empty"},
		"only a BOM":           {"\xef\xbb\xbf", "it is empty"},
		"UTF-16":               {"\xff\xfee\x00", "UTF-16"},
		"unknown column":       {"ean,supplier,supply_from,supply_to,postcode\n" + good, "line 1, column 36: unknown column"},
		"other letters":        {"EAN,supplier,supply_from,supply_to\n", "line 1, column 1: unknown column"},
		"a column twice":       {"ean,supplier,supply_from,supply_to,ean\n", "line 1, column 36 (ean): the column is there twice"},
		"no supplier":          {"ean,supply_from,supply_to\n", "(supplier): the column is missing"},
		"no end":               {"ean,supplier,supply_from\n", "(supply_to): the column is missing"},
		"no moved_in":          {"ean,supplier,supply_from,supply_to,moved_out\n", "(moved_in): the column is missing"},
		"both separators":      {"ean;supplier;supply_from,supply_to\n", "unknown column"},
		"quotes in a heading":  {"ean,sup\"plier,supply_from,supply_to\n", "line 1, column 5: a quotation mark"},
		"a heading, not UTF-8": {"ean,\xff\n", "line 1, column 5: is not UTF-8"},
		"descending":           {heading + second + ",electricity," + alpha + ",2024-01-01,,,\n" + good, "line 3, column 1 (ean): metering points must come in ascending order"},
		"twice":                {heading + good + second + ",electricity," + alpha + ",2024-01-01,,,\n" + good, "line 4, column 1 (ean): metering points must come in ascending order"},
		"a long line":          {heading + good + strings.Repeat("x", 1<<20) + "\n", "line 3, column 1: the line is longer than 4096 bytes"},
		"a long last line":     {heading + strings.Repeat("x", maxRegisterLine+1), "line 2, column 1: the line is longer"},
		"too many rows":        {heading + strings.Repeat(first+",,,,,2024-01-01,\n", maxPointRows+1), "more than 1024 rows"},
	} {
		_, err := readAll(strings.NewReader(c.text))
		if !errors.Is(err, ErrRegister) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := errors.New("disk")
	if _, err := readAll(io.MultiReader(strings.NewReader(heading+good), iotest.ErrReader(broken))); !errors.Is(err, broken) || errors.Is(err, ErrRegister) {
		t.Errorf("%v", err)
	}
	if _, err := readAll(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

// TestRegisterRows: what is wrong with rows, where, and that it never repeats
// what they hold.
func TestRegisterRows(t *testing.T) {
	t.Parallel()
	row := func(cells ...string) string {
		return strings.Join(append([]string{first, "electricity"}, cells...), ",") + "\n"
	}
	for name, c := range map[string]struct {
		rows string
		want []string
	}{
		"check digit":        {"871687200000000011,,," + "2024-01-01,,,\n", []string{"line 2, column 1 (ean): not an EAN-18", "line 2, column 21 (supplier): a supply period of no supplier"}},
		"reversed":           {row(alpha, "2025-01-01", "2024-01-01", "", ""), []string{"line 2, column 57 (supply_to): the supply period ends before it begins"}},
		"of no day":          {row(alpha, "2025-01-01", "2025-01-01", "", ""), []string{"(supply_to): the supply period ends before it begins"}},
		"endless in digits":  {row(alpha, "2025-01-01", "9999-12-31", "", ""), []string{"line 2, column 57 (supply_to): 9999-12-31 is no day: leave the cell empty"}},
		"no beginning":       {row(alpha, "", "2025-01-01", "", ""), []string{"(supply_from): the supply period has an end and no beginning"}},
		"no supplier":        {row("", "2025-01-01", "", "", ""), []string{"line 2, column 32 (supplier): a supply period of no supplier"}},
		"no supply":          {row(alpha, "", "", "2025-01-01", ""), []string{"(supply_from): a supplier without the first day"}},
		"unknown commodity":  {first + ",water," + alpha + ",2024-01-01,,,\n", []string{"line 2, column 20 (commodity): must be electricity or gas"}},
		"not a GLN":          {row("8712000000012", "2025-01-01", "", "", ""), []string{"line 2, column 32 (supplier): not a GLN"}},
		"not a day":          {row(alpha, "2025-02-30", "", "01-02-2025", ""), []string{"(supply_from): not a day", "(moved_in): not a day"}},
		"a time":             {row(alpha, "2025-02-01T00:00", "", "", ""), []string{"(supply_from): not a day"}},
		"before 1970":        {row(alpha, "1969-12-31", "", "", ""), []string{"(supply_from): not a day"}},
		"move reversed":      {row("", "", "", "2025-01-01", "2024-01-01"), []string{"(moved_out): the occupancy ends before it begins"}},
		"moved out only":     {row("", "", "", "", "2024-01-01"), []string{"(moved_in): the occupancy has an end and no beginning"}},
		"nothing":            {row("", "", "", "", ""), []string{"the row says nothing"}},
		"too few cells":      {first + ",electricity\n", []string{"line 2, column 20: 2 cells; the heading has 7"}},
		"too many cells":     {row(alpha, "2025-01-01", "", "", "", "x"), []string{"8 cells; the heading has 7"}},
		"spaces":             {first + ",electricity, " + alpha + ",2024-01-01,,,\n", []string{"(supplier): not a GLN"}},
		"a quotation mark":   {first + ",electricity,87\"12,2024-01-01,,,\n", []string{"line 2, column 32 (supplier): a quotation mark within a cell"}},
		"not UTF-8":          {first + ",electricity,\xff,2024-01-01,,,\n", []string{"(supplier): is not UTF-8"}},
		"two commodities":    {row(alpha, "2024-01-01", "2025-01-01", "", "") + first + ",gas," + alpha + ",2025-01-01,,,\n", []string{"line 3, column 20 (commodity): line 2 says the other commodity"}},
		"overlap":            {row(alpha, "2024-01-01", "2025-01-01", "", "") + row(beta, "2024-12-31", "", "", ""), []string{"line 3, column 46 (supply_from): overlaps the supply period of line 2"}},
		"overlap, unsorted":  {row(beta, "2024-12-31", "", "", "") + row(alpha, "2024-01-01", "2025-01-01", "", ""), []string{"line 2, column 46 (supply_from): overlaps the supply period of line 3"}},
		"twice the same":     {row(alpha, "2024-01-01", "", "", "") + row(alpha, "2024-01-01", "", "", ""), []string{"line 3, column 46 (supply_from): overlaps the supply period of line 2"}},
		"endless":            {row(alpha, "2024-01-01", "", "", "") + row(beta, "2025-01-01", "", "", ""), []string{"line 2, column 57 (supply_to): the supply period has no end, but line 3 begins another"}},
		"endless occupancy":  {row("", "", "", "2024-01-01", "") + row("", "", "", "2025-01-01", ""), []string{"line 2, column 46 (moved_out): the occupancy has no end, but by line 3"}},
		"overlap of moves":   {row("", "", "", "2024-01-01", "2025-01-01") + row("", "", "", "2024-06-01", ""), []string{"line 3, column 35 (moved_in): overlaps the occupancy of line 2"}},
		"two ends of a move": {row("", "", "", "2024-01-01", "2025-01-01") + row("", "", "", "2024-01-01", ""), []string{"(moved_out): line 3 says another end of the same occupancy"}},
	} {
		points, err := readAll(strings.NewReader(heading + c.rows))
		if err != nil || len(points) != 1 {
			t.Errorf("%s: %v, %d metering points", name, err, len(points))
			continue
		}
		var got []string
		for _, p := range points[0].bad {
			got = append(got, p.String())
			for _, secret := range []string{first, alpha, "8712000000012", "871687200000000011"} {
				if strings.Contains(p.String(), secret) {
					t.Errorf("%s: repeats the text: %s", name, p)
				}
			}
		}
		if !slices.EqualFunc(got, c.want, strings.Contains) && !(name == "two ends of a move" && len(got) == 1 && strings.Contains(got[0], "says another end of the same occupancy")) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestRegisterStray: a row whose metering point cannot be read spoils those it
// may belong to, and no others.
func TestRegisterStray(t *testing.T) {
	t.Parallel()
	ok := func(ean string) string { return ean + ",electricity," + alpha + ",2024-01-01,,,\n" }
	more := func(ean string) string { return ean + ",,,,,2024-01-01,\n" }
	const stray = "x,electricity," + alpha + ",2025-01-01,,,\n"
	for name, c := range map[string]struct {
		text string
		bad  []bool
	}{
		"between two":      {ok(first) + stray + ok(second) + ok(third), []bool{true, true, false}},
		"within one":       {ok(first) + stray + more(first) + ok(second) + ok(third), []bool{true, false, false}},
		"first":            {stray + ok(first) + ok(second), []bool{true, false}},
		"last":             {ok(first) + ok(second) + stray, []bool{false, true}},
		"nothing but that": {stray, []bool{true}},
		"two between":      {ok(first) + stray + stray + ok(second) + ok(third), []bool{true, true, false}},
	} {
		points, err := readAll(strings.NewReader(heading + c.text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var bad []bool
		for _, p := range points {
			bad = append(bad, len(p.bad) > 0)
		}
		if !slices.Equal(bad, c.bad) {
			t.Errorf("%s: %v, want %v", name, bad, c.bad)
		}
	}
}

// FuzzRegister: whatever the bytes, the reader ends, holds no more than a
// metering point, and what it reads is well formed and comes back when written.
func FuzzRegister(f *testing.F) {
	f.Add([]byte(heading + first + ",electricity," + alpha + ",2024-01-01,2025-03-01,2023-05-01,\n" + first + ",electricity," + beta + ",2025-03-01,,,\n"))
	f.Add([]byte(strings.ReplaceAll(heading+first+",,,,,2024-01-01,\nx,,,,,,\n"+second+",gas,\""+alpha+"\",2024-01-01,,,\r\n", ",", ";")))
	f.Add([]byte("\xef\xbb\xbf" + heading + "\n\n" + first))
	f.Add([]byte("ean,supplier,supply_from,supply_to\n" + third + "," + beta + ",2024-01-01,9999-12-31\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		points, err := readAll(bytes.NewReader(b))
		if err != nil && !errors.Is(err, ErrRegister) {
			t.Fatal(err)
		}
		var last int64
		var again bytes.Buffer
		again.WriteString(heading)
		whole := err == nil
		for _, p := range points {
			if p.ean.IsZero() != (p.ean.Int64() == 0) || p.ean.IsZero() && len(p.bad) == 0 || len(p.rows) > maxPointRows {
				t.Fatalf("%+v", p)
			}
			if !p.ean.IsZero() {
				if p.ean.Int64() <= last {
					t.Fatal("not ascending")
				}
				last = p.ean.Int64()
			}
			for _, x := range p.bad {
				if x.Line < 2 || x.Column < 1 || x.Reason == "" {
					t.Fatalf("%+v", x)
				}
			}
			whole = whole && len(p.bad) == 0
			for _, r := range p.rows {
				if r.ean != p.ean || r.supplier.IsZero() != (r.supply == meter.DayRange{}) || r.supply != (meter.DayRange{}) && r.supply.Empty() || r.occupied != (meter.DayRange{}) && r.occupied.Empty() {
					t.Fatalf("%+v", r)
				}
				again.WriteString(written(&r))
			}
			if len(p.bad) == 0 {
				pl := planRegister(p, nil, true, time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC), loc)
				if len(pl.problems) == 0 && len(pl.steps) == 0 {
					t.Fatal("a new metering point without steps")
				}
			}
		}
		if !whole || len(points) == 0 {
			return
		}
		back, err := readAll(&again)
		if err != nil || len(back) != len(points) {
			t.Fatalf("%v, %d metering points of %d", err, len(back), len(points))
		}
		for i, p := range back {
			same := slices.EqualFunc(p.rows, points[i].rows, func(a, b registerRow) bool {
				a.line, b.line, a.at, b.at = 0, 0, [columnCount]int{}, [columnCount]int{}
				return a == b
			})
			if !same || p.ean != points[i].ean || len(p.bad) > 0 {
				t.Fatalf("%+v became %+v", points[i], p)
			}
		}
	})
}

// written is a row as text.
func written(r *registerRow) string {
	text := func(d meter.Day) string {
		if d == meter.MaxDay {
			return ""
		}
		return d.String()
	}
	kind, supplier, from, to, in, out := "", "", "", "", "", ""
	if r.kind != 0 {
		kind = r.kind.String()
	}
	if !r.supplier.IsZero() {
		supplier, from, to = r.supplier.String(), text(r.supply.From), text(r.supply.To)
	}
	if r.occupied != (meter.DayRange{}) {
		in, out = text(r.occupied.From), text(r.occupied.To)
	}
	return strings.Join([]string{r.ean.String(), kind, supplier, from, to, in, out}, ",") + "\n"
}

var someTime = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// file takes steps on a new metering point.
func file(t interface{ Fatalf(string, ...any) }, steps ...authz.Step) *authz.LegalFile {
	ean, _ := meter.ParseEAN(first)
	f, err := authz.Apply(nil, authz.Register{EAN: ean, Commodity: meter.Electricity}, registrarActor, someTime, loc)
	for _, s := range steps {
		if err == nil {
			f, err = authz.Apply(f, s, registrarActor, someTime, loc)
		}
	}
	if err != nil {
		t.Fatalf("%v", err)
	}
	return f
}

func supplies(s, from, to string) authz.Step {
	return authz.SetSupply{Supplier: gln(s), Days: span2(from, to)}
}

func occupied(from, to string) authz.Step { return authz.SetOccupancy{Days: span2(from, to)} }

// TestRegisterPlan: the steps that rows make of a legal file.
func TestRegisterPlan(t *testing.T) {
	t.Parallel()
	home := occupied("2023-01-01", "")
	ean, _ := meter.ParseEAN(first)
	row := func(s, from, to string) string { return first + ",electricity," + s + "," + from + "," + to + ",,\n" }
	move := func(in, out string) string { return first + ",,,,," + in + "," + out + "\n" }
	for name, c := range map[string]struct {
		current []authz.Step // nil: no file
		isNew   bool
		rows    string
		correct bool
		want    []authz.Step
		problem string
	}{
		"new": {isNew: true, rows: row(alpha, "2024-01-01", ""), want: []authz.Step{
			authz.Register{EAN: ean, Commodity: meter.Electricity}, occupied("2024-01-01", ""), supplies(alpha, "2024-01-01", "")}},
		"new with a move and a switch": {isNew: true, rows: row(beta, "2025-01-01", "") + row(alpha, "2024-01-01", "2025-01-01") + move("2023-01-01", "2024-06-01") + move("2024-06-01", ""), want: []authz.Step{
			authz.Register{EAN: ean, Commodity: meter.Electricity}, occupied("2023-01-01", "2024-06-01"), occupied("2024-06-01", ""), supplies(alpha, "2024-01-01", "2025-01-01"), supplies(beta, "2025-01-01", "")}},
		"new without a commodity": {isNew: true, rows: move("2024-01-01", ""), problem: "(commodity): the metering point is new"},
		"another commodity":       {current: []authz.Step{home}, rows: first + ",gas," + alpha + ",2024-01-01,,,\n", problem: "registered for electricity"},
		"the same":                {current: []authz.Step{home, supplies(alpha, "2024-01-01", "")}, rows: row(alpha, "2024-01-01", "")},
		"the same in two parts":   {current: []authz.Step{home, supplies(alpha, "2024-01-01", "2025-01-01"), supplies(alpha, "2025-01-01", "")}, rows: row(alpha, "2024-01-01", "")},
		"two parts of one":        {current: []authz.Step{home, supplies(alpha, "2024-01-01", "")}, rows: row(alpha, "2024-01-01", "2025-01-01") + row(alpha, "2025-01-01", "")},
		"the last part only":      {current: []authz.Step{home, supplies(alpha, "2024-01-01", "2025-01-01"), supplies(alpha, "2025-01-01", "")}, rows: row(alpha, "2025-01-01", "")},
		"a contract renewed":      {current: []authz.Step{home, supplies(alpha, "2024-01-01", "2025-01-01")}, rows: row(alpha, "2024-01-01", "2025-01-01") + row(alpha, "2025-01-01", "2026-01-01"), want: []authz.Step{supplies(alpha, "2025-01-01", "2026-01-01")}},
		"it ended":                {current: []authz.Step{home, supplies(alpha, "2024-01-01", "")}, rows: row(alpha, "2024-01-01", "2025-01-01"), want: []authz.Step{supplies(alpha, "2024-01-01", "2025-01-01")}},
		"the last part ended":     {current: []authz.Step{home, supplies(alpha, "2024-01-01", "2025-01-01"), supplies(alpha, "2025-01-01", "")}, rows: row(alpha, "2025-01-01", "2025-06-01"), want: []authz.Step{supplies(alpha, "2025-01-01", "2025-06-01")}},
		"a switch":                {current: []authz.Step{home, supplies(alpha, "2024-01-01", "")}, rows: row(beta, "2025-01-01", ""), want: []authz.Step{supplies(beta, "2025-01-01", "")}},
		"a switch, both rows":     {current: []authz.Step{home, supplies(alpha, "2024-01-01", "")}, rows: row(alpha, "2024-01-01", "2025-01-01") + row(beta, "2025-01-01", ""), want: []authz.Step{supplies(alpha, "2024-01-01", "2025-01-01"), supplies(beta, "2025-01-01", "")}},
		"before the first":        {current: []authz.Step{home, supplies(alpha, "2024-01-01", "")}, rows: row(beta, "2023-01-01", "2024-01-01"), want: []authz.Step{supplies(beta, "2023-01-01", "2024-01-01")}},
		"another start":           {current: []authz.Step{home, supplies(alpha, "2024-01-01", "")}, rows: row(alpha, "2024-02-01", ""), problem: "by the legal file this supplier supplies from 2024-01-01 on; if the extract is right, import it with --correct"},
		"another supplier":        {current: []authz.Step{home, supplies(alpha, "2024-01-01", "")}, rows: row(beta, "2024-01-01", ""), problem: "by the legal file another supplier supplies from 2024-01-01 on"},
		"it did not end":          {current: []authz.Step{home, supplies(alpha, "2024-01-01", "2025-01-01")}, rows: row(alpha, "2024-01-01", ""), problem: "this supplier supplies from 2024-01-01 to 2025-01-01"},
		"ended, but a gap":        {current: []authz.Step{home, supplies(alpha, "2024-01-01", "2024-02-01"), supplies(alpha, "2025-01-01", "")}, rows: row(alpha, "2024-01-01", "2025-06-01"), problem: "by the legal file this supplier supplies from 2024-01-01 to 2024-02-01; if the extract is right, import it with --correct"},
		"ended, another between":  {current: []authz.Step{home, supplies(alpha, "2024-01-01", "2024-02-01"), supplies(beta, "2024-02-01", "2025-01-01"), supplies(alpha, "2025-01-01", "")}, rows: row(alpha, "2024-01-01", "2025-06-01"), problem: "by the legal file this supplier supplies from 2024-01-01 to 2024-02-01"},
		"moved out":               {current: []authz.Step{home}, rows: move("2023-01-01", "2024-01-01"), want: []authz.Step{occupied("2023-01-01", "2024-01-01")}},
		"moved in":                {current: []authz.Step{home}, rows: move("2024-01-01", ""), want: []authz.Step{occupied("2024-01-01", "")}},
		"moved in earlier":        {current: []authz.Step{home}, rows: move("2022-01-01", ""), problem: "(moved_in): the legal file has an occupancy from 2023-01-01 on; if the extract is right"},

		"corrected: another start":    {correct: true, current: []authz.Step{home, supplies(alpha, "2024-01-01", "")}, rows: row(alpha, "2024-02-01", ""), want: []authz.Step{authz.CorrectSupply{Days: span2("2024-01-01", "2024-02-01")}}},
		"corrected: an earlier start": {correct: true, current: []authz.Step{home, supplies(alpha, "2024-01-01", "")}, rows: row(alpha, "2023-02-01", ""), want: []authz.Step{authz.CorrectSupply{Supplier: gln(alpha), Days: span2("2023-02-01", "2024-01-01")}}},
		"corrected: another supplier": {correct: true, current: []authz.Step{home, supplies(alpha, "2024-01-01", "")}, rows: row(beta, "2024-01-01", ""), want: []authz.Step{authz.CorrectSupply{Supplier: gln(beta), Days: span2("2024-01-01", "")}}},
		"corrected: it did not end":   {correct: true, current: []authz.Step{home, supplies(alpha, "2024-01-01", "2025-01-01")}, rows: row(alpha, "2024-01-01", ""), want: []authz.Step{authz.CorrectSupply{Supplier: gln(alpha), Days: span2("2025-01-01", "")}}},
		"corrected: ended, but a gap": {correct: true, current: []authz.Step{home, supplies(alpha, "2024-01-01", "2024-02-01"), supplies(alpha, "2025-01-01", "")}, rows: row(alpha, "2024-01-01", "2025-06-01"), want: []authz.Step{
			authz.CorrectSupply{Supplier: gln(alpha), Days: span2("2024-02-01", "2025-01-01")}, authz.CorrectSupply{Days: span2("2025-06-01", "")}}},
		"corrected: an earlier switch":        {correct: true, current: []authz.Step{home, supplies(alpha, "2024-01-01", ""), supplies(beta, "2025-03-01", "")}, rows: row(alpha, "2024-01-01", "2025-02-01") + row(beta, "2025-02-01", ""), want: []authz.Step{authz.CorrectSupply{Supplier: gln(beta), Days: span2("2025-02-01", "2025-03-01")}}},
		"corrected: a switch that never was":  {correct: true, current: []authz.Step{home, supplies(alpha, "2024-01-01", ""), supplies(beta, "2025-03-01", "")}, rows: row(alpha, "2024-01-01", ""), want: []authz.Step{authz.CorrectSupply{Supplier: gln(alpha), Days: span2("2025-03-01", "")}}},
		"corrected: nothing before the first": {correct: true, current: []authz.Step{home, supplies(beta, "2023-01-01", "2024-01-01"), supplies(alpha, "2024-01-01", "")}, rows: row(alpha, "2024-01-01", "")},
		"corrected: a supply that never was":  {correct: true, current: []authz.Step{home, supplies(alpha, "2024-01-01", ""), supplies(beta, "2025-03-01", "")}, rows: row(alpha, "2024-01-01", "2025-03-01"), want: []authz.Step{authz.CorrectSupply{Days: span2("2025-03-01", "")}}},
		"corrected: up to the first row": {correct: true, current: []authz.Step{home, supplies(alpha, "2024-01-01", "2024-02-01")}, rows: row(alpha, "2024-02-01", "2024-03-01"), want: []authz.Step{
			supplies(alpha, "2024-02-01", "2024-03-01"), authz.CorrectSupply{Days: span2("2024-01-01", "2024-02-01")}}},
		"corrected: up to the first row, another then": {correct: true, current: []authz.Step{home, supplies(alpha, "2024-01-01", "2024-02-01"), supplies(beta, "2024-02-01", "2024-03-01")}, rows: row(alpha, "2024-02-01", "2024-02-15"), want: []authz.Step{
			authz.CorrectSupply{Days: span2("2024-01-01", "2024-02-01")}, authz.CorrectSupply{Supplier: gln(alpha), Days: span2("2024-02-01", "2024-02-15")}, authz.CorrectSupply{Days: span2("2024-02-15", "2024-03-01")}}},
		"corrected: a move in the way": {correct: true, current: []authz.Step{occupied("2020-01-01", "2021-01-01"), occupied("2021-06-01", "2022-01-01")}, rows: move("2020-01-01", "2021-09-01"), problem: "no correction leads from the occupancy from 2020-01-01 to 2021-01-01"},
		"corrected: a move":            {correct: true, current: []authz.Step{home, occupied("2025-03-01", "")}, rows: move("2023-01-01", "2025-02-01") + move("2025-02-01", ""), want: []authz.Step{authz.CorrectMove{Was: day("2025-03-01"), Is: day("2025-02-01")}}},
		"corrected: the first move":    {correct: true, current: []authz.Step{home}, rows: move("2022-01-01", "2024-01-01"), want: []authz.Step{authz.CorrectMove{Was: day("2023-01-01"), Is: day("2022-01-01")}, occupied("2022-01-01", "2024-01-01")}},
		"corrected: both ends":         {correct: true, current: []authz.Step{occupied("2020-01-01", "2021-01-01")}, rows: move("2022-01-01", "2023-01-01"), want: []authz.Step{occupied("2022-01-01", "2023-01-01")}},
		"corrected: both ends, later":  {correct: true, current: []authz.Step{occupied("2020-01-01", "2021-01-01")}, rows: move("2020-12-01", "2023-01-01"), want: []authz.Step{authz.CorrectMove{Was: day("2020-01-01"), Is: day("2020-12-01")}, authz.CorrectMove{Was: day("2021-01-01"), Is: day("2023-01-01")}}},
		"corrected: it lasts":          {correct: true, current: []authz.Step{occupied("2020-01-01", "2021-01-01")}, rows: move("2020-01-01", ""), problem: "no correction leads from the occupancy from 2020-01-01 to 2021-01-01"},
	} {
		points, err := readAll(strings.NewReader(heading + c.rows))
		if err != nil || len(points) != 1 || len(points[0].bad) > 0 {
			t.Fatalf("%s: %v, %+v", name, err, points)
		}
		var current *authz.LegalFile
		if !c.isNew {
			current = file(t, c.current...)
		}
		pl := planRegister(points[0], current, c.correct, someTime.Add(-time.Hour), loc)
		if c.problem != "" {
			if len(pl.problems) != 1 || !strings.Contains(pl.problems[0].String(), c.problem) {
				t.Errorf("%s: %v", name, pl.problems)
			}
			continue
		}
		if len(pl.problems) > 0 || !slices.EqualFunc(pl.steps, c.want, func(a, b authz.Step) bool { return bytes.Equal(a.Encode(), b.Encode()) }) {
			t.Errorf("%s: %v, %+v, want %+v", name, pl.problems, pl.steps, c.want)
			continue
		}
		if again := planRegister(points[0], pl.draft, c.correct, someTime, loc); len(again.steps)+len(again.problems) > 0 {
			t.Errorf("%s: a second time %+v, %v", name, again.steps, again.problems)
		}
	}
}

// TestRegisterPlanProperty: whatever a legal file says, corrected it says what
// the extract says from its first day on, and nothing else has changed; without
// corrections a day keeps its supplier, or the row is refused; and the second
// time nothing is left to do.
func TestRegisterPlanProperty(t *testing.T) {
	t.Parallel()
	const days = 40
	base := day("2024-01-01")
	parties := []string{"", alpha, beta, "8712000000035"}
	rapid.Check(t, func(t *rapid.T) {
		// A supplier for each day, and open at the end or not.
		draw := func(name string) []string {
			var out []string
			for len(out) < days {
				who := rapid.SampledFrom(parties).Draw(t, name)
				for range rapid.IntRange(1, 12).Draw(t, name+" days") {
					out = append(out, who)
				}
			}
			return out[:days]
		}
		// The last day's supplier goes on for ever.
		periods := func(of []string) (out []authz.SupplyPeriod) {
			for i := 0; i < days; {
				j := i
				for j < days && of[j] == of[i] {
					j++
				}
				end := base + meter.Day(j)
				if j == days {
					end = meter.MaxDay
				}
				if of[i] != "" {
					out = append(out, authz.SupplyPeriod{Supplier: gln(of[i]), Days: meter.DayRange{From: base + meter.Day(i), To: end}})
				}
				i = j
			}
			return out
		}
		at := func(f *authz.LegalFile, d meter.Day) meter.GLN {
			for _, p := range f.SupplyPeriods() {
				if p.Days.Contains(d) {
					return p.Supplier
				}
			}
			return meter.GLN{}
		}
		steps := []authz.Step{authz.SetOccupancy{Days: meter.DayRange{From: base, To: meter.MaxDay}}}
		for _, p := range periods(draw("legal file")) {
			// In parts, as renewals are.
			if cut := p.Days.From + 3; rapid.Bool().Draw(t, "cut") && p.Days.To > cut {
				steps = append(steps, authz.SetSupply{Supplier: p.Supplier, Days: meter.DayRange{From: p.Days.From, To: cut}})
				p.Days.From = cut
			}
			steps = append(steps, authz.SetSupply(p))
		}
		current := file(t, steps...)
		want := draw("extract")
		var text strings.Builder
		text.WriteString(heading)
		ean, _ := meter.ParseEAN(first)
		rows := periods(want)
		if len(rows) == 0 {
			return
		}
		for _, p := range rows {
			text.WriteString(written(&registerRow{ean: ean, supplier: p.Supplier, supply: p.Days}))
		}
		points, err := readAll(strings.NewReader(text.String()))
		if err != nil || len(points) != 1 || len(points[0].bad) > 0 {
			t.Fatalf("%v, %+v", err, points)
		}
		for _, correct := range []bool{false, true} {
			pl := planRegister(points[0], current, correct, someTime, loc)
			if correct && len(pl.problems) > 0 {
				t.Fatalf("%v", pl.problems)
			}
			if len(pl.problems) > 0 {
				continue
			}
			from := rows[0].Days.From
			for d := base; d < base+days+5; d++ {
				is, was := at(pl.draft, d), at(current, d)
				row := meter.GLN{}
				for _, p := range rows {
					if p.Days.Contains(d) {
						row = p.Supplier
					}
				}
				switch {
				case !row.IsZero() && is != row:
					t.Fatalf("on %s the extract has %s, the legal file %s", d, row, is)
				case correct && d >= from && is != row:
					t.Fatalf("on %s the extract has nobody, the legal file %s", d, is)
				case !correct && row.IsZero() && is != was && !is.IsZero():
					t.Fatalf("on %s %s became %s by no row", d, was, is)
				case d < from && is != was && (was != rows[0].Supplier || !is.IsZero()):
					t.Fatalf("on %s, before the first row, %s became %s", d, was, is)
				case !correct && d < from && is != was:
					t.Fatalf("on %s, before the first row, %s became %s", d, was, is)
				}
			}
			if again := planRegister(points[0], pl.draft, correct, someTime, loc); len(again.steps)+len(again.problems) > 0 {
				t.Fatalf("a second time %+v, %v", again.steps, again.problems)
			}
		}
	})
}
