package conformance

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"kluis/openapi/client"
)

const tableHead = "record,ean,field,obis,readingKind,resolution,unit,legalBasis,rule,start,value,quality,from,to,reason,expectedCount,deliveredCount,sequence,cursor,manifest\r\n"

const aTable = tableHead +
	"series,952000000000001016,import_low,1-0:1.8.1,REGISTER,P1D,kWh,SUPPLY_DAILY,nl-daily,,,,,,,3,2,,,\r\n" +
	"value,952000000000001016,import_low,1-0:1.8.1,REGISTER,P1D,kWh,SUPPLY_DAILY,nl-daily,2026-03-28T00:00:00+01:00,1.000,,,,,,,,,\r\n" +
	"value,952000000000001016,import_low,1-0:1.8.1,REGISTER,P1D,kWh,SUPPLY_DAILY,nl-daily,2026-03-29T00:00:00+01:00,,,,,,,,,,\r\n" +
	"value,952000000000001016,import_low,1-0:1.8.1,REGISTER,P1D,kWh,SUPPLY_DAILY,nl-daily,2026-03-30T00:00:00+02:00,2.000,ESTIMATED,,,,,,,,\r\n" +
	"withheld,952000000000001016,gas,,,,,,,,,,2026-03-28,2026-03-30,NOT_COVERED,,,,,\r\n"

const aFeed = `<feed xmlns="http://www.w3.org/2005/Atom">
<entry><link rel="self" href="/P"/><title>952000000000001016</title><content><UsagePoint xmlns="http://naesb.org/espi"><extension><withheld xmlns="urn:kluis:espi" field="gas" from="2026-03-28" to="2026-03-30" reason="NOT_COVERED"/></extension></UsagePoint></content></entry>
<entry><link rel="self" href="/Z"/><title>Europe/Amsterdam</title><content><LocalTimeParameters xmlns="http://naesb.org/espi"/></content></entry>
<entry><link rel="self" href="/P/M"/><link rel="related" href="/T"/><title>x</title><content><MeterReading xmlns="http://naesb.org/espi"><extension><series xmlns="urn:kluis:espi" field="import_low" obis="1-0:1.8.1" readingKind="REGISTER" resolution="P1D" unit="kWh" legalBasis="SUPPLY_DAILY" rule="nl-daily" expectedCount="2" deliveredCount="2"/></extension></MeterReading></content></entry>
<entry><link rel="self" href="/T"/><title>x</title><content><ReadingType xmlns="http://naesb.org/espi"><powerOfTenMultiplier>0</powerOfTenMultiplier><uom>72</uom></ReadingType></content></entry>
<entry><link rel="up" href="/P/M/IntervalBlock"/><title/><content><IntervalBlock xmlns="http://naesb.org/espi"><IntervalReading><timePeriod><duration>0</duration><start>1774738800</start></timePeriod><value>1000</value></IntervalReading><IntervalReading><timePeriod><duration>0</duration><start>1774821600</start></timePeriod><value>2000</value></IntervalReading></IntervalBlock></content></entry>
</feed>`

func text(s string) *string { return &s }

// A table and a feed are compared whole, like JSON.
func TestForms(t *testing.T) {
	t.Parallel()
	withheld := []Withheld{{"gas", "2026-03-28", "2026-03-30", "NOT_COVERED"}}
	series := Series{Field: "import_low", OBIS: "1-0:1.8.1", ReadingKind: "REGISTER", Resolution: "P1D", Unit: "kWh", LegalBasis: "SUPPLY_DAILY", Rule: "nl-daily", ExpectedCount: 3, DeliveredCount: 2,
		Days: []Day{{Start: "2026-03-28T00:00:00+01:00", Values: []*string{text("1.000")}}, {Start: "2026-03-29T00:00:00+01:00", Values: []*string{nil}},
			{Start: "2026-03-30T00:00:00+02:00", Values: []*string{text("2.000")}, Quality: []Quality{{0, 1, "ESTIMATED"}}}}}
	table := Answer{Status: 200, Points: []Answered{{EAN: "952000000000001016", Series: []Series{series}, Withheld: withheld}}}
	series.ExpectedCount = 2
	series.Days = []Day{{Start: "2026-03-29T00:00:00+01:00", Values: []*string{text("1.000")}}, {Start: "2026-03-30T00:00:00+02:00", Values: []*string{text("2.000")}}}
	feed := Answer{Status: 200, Points: []Answered{{EAN: "952000000000001016", Series: []Series{series}, Withheld: withheld}}}
	for _, form := range []struct {
		media, body string
		want        Answer
		spoil       map[string]string // what is put in the place of what
	}{
		{mediaTable, aTable, table, map[string]string{"1.000": "1.001", "ESTIMATED": "", "+02:00": "+01:00", ",3,2,": ",3,3,", "NOT_COVERED": "NO_SUPPLY", "gas": "heat", "2026-03-29T": "2026-03-27T", ",kWh,": ",m3,"}},
		{mediaFeed, aFeed, feed, map[string]string{"<value>1000<": "<value>1001<", "1774738800": "1774735200", ">0</powerOf": ">3</powerOf", "NOT_COVERED": "NO_SUPPLY", "gas": "heat", "Europe/Amsterdam": "UTC", `deliveredCount="2"`: `deliveredCount="1"`}},
	} {
		header := http.Header{"Content-Type": {form.media + "; charset=utf-8"}}
		got, _, err := parseAnswer(200, header, []byte(form.body))
		if err != nil || len(differences(got, form.want)) != 0 {
			t.Errorf("%s: %v, %v", form.media, err, differences(got, form.want))
		}
		for from, to := range form.spoil {
			spoiled := strings.Replace(form.body, from, to, 1)
			if spoiled == form.body {
				t.Fatal(from)
			}
			if got, _, err := parseAnswer(200, header, []byte(spoiled)); err == nil && len(differences(got, form.want)) == 0 {
				t.Errorf("%s: %q in the place of %q is not noticed", form.media, to, from)
			}
		}
	}
}

// The chain of a stream is over what came, whatever its form.
func TestStreams(t *testing.T) {
	t.Parallel()
	const query = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	line := `{"type":"point","sequence":1,"ean":"9","problem":{"type":"urn:kluis:problem:metering-point-not-found"}}` + "\n"
	row := "problem,9" + strings.Repeat(",", 12) + ",metering-point-not-found,,,1,,\r\n"
	ndjson := `{"type":"begin","query":"` + query + `"}` + "\n" + line + `{"type":"progress","sequence":1,"cursor":"c1"}` + "\n"
	table := tableHead + "begin" + strings.Repeat(",", 19) + "query=" + query + "\r\n" + row + "progress" + strings.Repeat(",", 18) + "c1,\r\n"
	for name, form := range map[string]struct {
		body, end, cut, chained string
		read                    func(*reading, string, int) error
	}{
		"NDJSON": {ndjson, `{"type":"end","complete":true,"manifest":"m"}` + "\n", `{"type":"end","complete":false,"problem":{"type":"urn:kluis:problem:evidence-changed"}}` + "\n", line,
			func(r *reading, s string, stop int) error { return r.lines(strings.NewReader(s), stop) }},
		"CSV": {table, "end" + strings.Repeat(",", 19) + "m\r\n", "end" + strings.Repeat(",", 14) + "evidence-changed" + strings.Repeat(",", 5) + "\r\n", row,
			func(r *reading, s string, stop int) error { return r.table(strings.NewReader(s), stop) }},
	} {
		want := client.NewChain([32]byte{})
		want.Add([]byte(form.chained))
		r := &reading{}
		if err := form.read(r, form.body+form.end, 0); err != nil || r.manifest != "m" || r.cursor != "c1" || r.chain.Digest() != want.Digest() ||
			!slices.EqualFunc(r.points, []Answered{{EAN: "9", Problem: "metering-point-not-found"}}, func(a, b Answered) bool { return a.EAN == b.EAN && a.Problem == b.Problem }) {
			t.Errorf("%s: %v, %+v", name, err, r)
		}
		r = &reading{}
		if err := form.read(r, form.body+form.end, 1); err != nil || r.manifest != "" || r.cursor != "c1" {
			t.Errorf("%s, broken off: %v, %+v", name, err, r)
		}
		r = &reading{}
		if err := form.read(r, form.body+form.cut, 0); err == nil || !strings.Contains(err.Error(), "evidence-changed") {
			t.Errorf("%s, ended early: %v", name, err)
		}
		r = &reading{}
		if err := form.read(r, form.body, 0); err != nil || r.manifest != "" {
			t.Errorf("%s, cut off: %v, %+v", name, err, r)
		}
	}
}
