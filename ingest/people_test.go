package ingest

import (
	"bytes"
	"compress/gzip"
	"errors"
	"strings"
	"testing"

	"kluis/meter"
)

const peopleHead = "ean,name,street,house_number,addition,postcode,city,from\n"

func TestReadPeople(t *testing.T) {
	t.Parallel()
	p := testProfile(t)
	const good = peopleHead +
		"871687200000000010,J. Jansen,Dorpsstraat,17,,1234AB,Ons Dorp,2023-01-01\n" +
		"871687200000000027,\"de Vries, K.\",Dorpsstraat,17,A,1234AB,Ons Dorp,2024-02-29\n"
	lines, rows, bad, err := ReadPeople(strings.NewReader(good), "x.csv", ',', p, ReadOptions{})
	if err != nil || rows != 2 || len(lines) != 2 || len(bad) != 0 || lines[1].Person.Name != "de Vries, K." || lines[1].Person.Address.Addition != "A" ||
		lines[1].From.String() != "2024-02-29" || lines[1].EAN.String() != "871687200000000027" || lines[0].Line != 2 || lines[1].Line != 3 ||
		lines[0].Person.Address.HouseNumber.String() != "17" || lines[0].Person.Address.Postcode.String() != "1234AB" {
		t.Fatalf("%+v, %d, %v, %v", lines, rows, bad, err)
	}
	// Packed, with another delimiter, columns in another order, a byte-order mark.
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write([]byte("\xef\xbb\xbffrom;city;postcode;addition;house_number;street;name;ean\n2023-01-01;Ons Dorp;1234AB;;17;Dorpsstraat;J. Jansen;871687200000000010\n"))
	_ = z.Close()
	again, _, _, err := ReadPeople(&packed, "x.csv.gz", ';', p, ReadOptions{})
	if err != nil || len(again) != 1 || again[0] != lines[0] {
		t.Errorf("%+v, %v", again, err)
	}

	for name, tt := range map[string]struct{ line, reason string }{
		"no EAN":          {"871687200000000011,Xyzzy,Dorpsstraat,17,,1234AB,Ons Dorp,2023-01-01", "line 2, column 1: not an EAN-18"},
		"no name":         {"871687200000000010,,Xyzzy,17,,1234AB,Ons Dorp,2023-01-01", "the name must be one line"},
		"long name":       {"871687200000000010," + strings.Repeat("Xyzzy", 40) + ",Dorpsstraat,17,,1234AB,Ons Dorp,2023-01-01", "the name must be one line"},
		"turned writing":  {"871687200000000010,Xyzzy\u202e,Dorpsstraat,17,,1234AB,Ons Dorp,2023-01-01", "the name must be one line"},
		"house number":    {"871687200000000010,Xyzzy,Dorpsstraat,17A,,1234AB,Ons Dorp,2023-01-01", "column 38: not a house number"},
		"postcode":        {"871687200000000010,Xyzzy,Dorpsstraat,17,,1234 AB,Ons Dorp,2023-01-01", "not a postcode"},
		"foreign":         {"871687200000000010,Xyzzy,Dorpsstraat,17,,1000,Ons Dorp,2023-01-01", "not a postcode"},
		"no day":          {"871687200000000010,Xyzzy,Dorpsstraat,17,,1234AB,Ons Dorp,2023-02-29", "from must be a local day"},
		"too few columns": {"871687200000000010,Xyzzy", "another number of columns"},
		"twice":           {"871687200000000010,J. Jansen,Dorpsstraat,17,,1234AB,Ons Dorp,2023-01-01\n871687200000000010,Xyzzy,Dorpsstraat,17,,1234AB,Ons Dorp,2023-01-01", "line 3, column 1: the same metering point"},
	} {
		_, _, _, err := ReadPeople(strings.NewReader(peopleHead+tt.line+"\n"), "x.csv", ',', p, ReadOptions{})
		if !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), tt.reason) || strings.Contains(err.Error(), "Xyzzy") {
			t.Errorf("%s: %v", name, err)
		}
		lines, rows, bad, err := ReadPeople(strings.NewReader(peopleHead+tt.line+"\n871687200000000034,J. Jansen,Dorpsstraat,17,,1234AB,Ons Dorp,2023-01-01\n"), "x.csv", ',', p, ReadOptions{SkipBad: true})
		if err != nil || len(bad) != 1 || len(lines)+1 != rows || lines[len(lines)-1].EAN.String() != "871687200000000034" {
			t.Errorf("%s, skipped: %+v, %v, %v", name, lines, bad, err)
		}
	}
	for name, text := range map[string]string{
		"nothing": "", "no rows": peopleHead, "a column more": strings.TrimSpace(peopleHead) + ",phone\n", "a column less": "ean,name\n",
		"a quote that does not end": peopleHead + "871687200000000010,\"J", "UTF-16": "\xff\xfee\x00",
	} {
		if _, _, _, err := ReadPeople(strings.NewReader(text), "x.csv", ',', p, ReadOptions{SkipBad: true}); !errors.Is(err, ErrFile) {
			t.Errorf("%s: %v", name, err)
		}
	}

	none, err := meter.ParseProfile([]byte(`country: XX
version: "1"
time_zone: UTC
retention: P2Y
fields:
  - {code: 1, name: reg, obis: "1-0:1.8.1", unit: kWh, precision: 3, class: registers, commodity: electricity, stored: [P1D]}
rules:
  - {id: one, basis: SUPPLY_DAILY, purpose: BILLING, classes: [registers], granularity: P1D, from: 2024-01-01, requires_supply: true, despite_opt_out: false, enabled: true}
`))
	if err == nil {
		_, err = NewPeople(none, nil, nil, nil)
	}
	if !errors.Is(err, ErrNoIdentities) {
		t.Errorf("by a profile without identities: %v", err)
	}
}

func FuzzReadPeople(f *testing.F) {
	f.Add(peopleHead + "871687200000000010,J. Jansen,Dorpsstraat,17,,1234AB,Ons Dorp,2023-01-01\n")
	f.Add("x")
	f.Fuzz(func(t *testing.T, text string) {
		lines, rows, bad, err := ReadPeople(strings.NewReader(text), "x", ',', testProfile(t), ReadOptions{SkipBad: true})
		if err == nil && len(lines)+len(bad) != rows {
			t.Errorf("%d lines, %d bad of %d", len(lines), len(bad), rows)
		}
		for _, l := range lines {
			if l.Person.Check() != nil || l.EAN.IsZero() {
				t.Errorf("%+v", l)
			}
		}
	})
}
