package server

import (
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/google/uuid"

	"kluis/meter"
)

// espiNames is the namespace (RFC 9562) of the identifiers in a feed. They are
// the same in every feed, so that a reader can tell what it has already; who
// has one can find the EAN by trying them all. That is no loss: the feed says
// it, as every answer does.
var espiNames = uuid.MustParse("0d7f0f3c-9a4b-5c35-8a06-5f9d3a1c7be2")

// espiExtension is the namespace of what ESPI has no words for.
const espiExtension = "urn:kluis:espi"

// espiResource begins the links of a feed. They tie its entries together, as
// readers expect them to; nothing is served there.
const espiResource = "/espi/1_1/resource"

// feed is an answer as Green Button: an Atom feed (RFC 4287) of ESPI resources
// (NAESB REQ.21, espi.xsd). Like the JSON it is written by hand into one
// buffer, of espiSize.
type feed struct {
	b   []byte
	at  string // when it was answered
	loc *time.Location
}

func (x *feed) raw(s string) { x.b = append(x.b, s...) }

// text writes character data, or the value of an attribute in double quotes.
func (x *feed) text(s string) { x.b = appendXML(x.b, s) }

func (x *feed) number(n int64) { x.b = strconv.AppendInt(x.b, n, 10) }

// element writes one of ESPI that holds a number.
func (x *feed) element(name string, n int64) {
	x.raw("<" + name + ">")
	x.number(n)
	x.raw("</" + name + ">")
}

// attribute writes one, with a space before it.
func (x *feed) attribute(name, value string) {
	x.raw(" " + name + `="`)
	x.text(value)
	x.raw(`"`)
}

func (x *feed) link(rel, kind, href string) {
	x.raw("<link")
	x.attribute("rel", rel)
	x.attribute("href", href)
	x.attribute("type", kind)
	x.raw("/>")
}

// resource is an entry of the feed; self is its path, the last part of which
// is id.
type resource struct {
	id       uuid.UUID
	kind     string // of ESPI
	self, up string
	related  []espiLink
	title    string
}

type espiLink struct{ kind, href string }

func (x *feed) begin(e *resource) {
	x.raw("<entry><id>urn:uuid:" + e.id.String() + "</id>")
	x.link("self", "espi-entry/"+e.kind, e.self)
	x.link("up", "espi-feed/"+e.kind, e.up)
	for _, l := range e.related {
		x.link("related", l.kind, l.href)
	}
	x.raw("<title>")
	x.text(e.title)
	x.raw("</title><content><" + e.kind + ` xmlns="http://naesb.org/espi">`)
}

func (x *feed) end(kind string) {
	x.raw("</" + kind + "></content><published>" + x.at + "</published><updated>" + x.at + "</updated></entry>\n")
}

// espiName is the stable identifier of what is named.
func espiName(parts ...string) uuid.UUID {
	var name []byte
	for _, p := range parts {
		name = append(append(name, p...), '\n')
	}
	return uuid.NewSHA1(espiNames, name)
}

// appendESPI writes the answer as a feed. Values that are not known, and those
// withheld, are left out of it: how many there should be, and what is withheld
// and why, stands in extensions.
func (a *answer) appendESPI(dst []byte) []byte {
	seconds, _ := a.interaction.Time().UnixTime() // version 7: when it was asked
	x := &feed{b: dst, at: time.Unix(seconds, 0).UTC().Format(time.RFC3339), loc: a.profile.Location()}
	ean := a.query.ean.String()
	x.raw(`<?xml version="1.0" encoding="UTF-8"?>` + "\n" + `<feed xmlns="http://www.w3.org/2005/Atom"><id>urn:uuid:` + a.interaction.String() + "</id>")
	x.raw("<title>" + ean + ", " + a.query.days.From.String() + " to " + a.query.days.To.String() + ", " + a.query.purpose.String() + "</title>")
	x.raw("<updated>" + x.at + "</updated>")
	x.link("self", "espi-feed/UsagePoint", espiResource+"/UsagePoint")
	x.raw("<author><name>Kluis</name></author>\n")

	point := espiName("UsagePoint", ean)
	path := espiResource + "/UsagePoint/" + point.String()
	zone := espiName("LocalTimeParameters", x.loc.String())
	zonePath := espiResource + "/LocalTimeParameters/" + zone.String()
	e := resource{
		id: point, kind: "UsagePoint", self: path, up: espiResource + "/UsagePoint", title: ean,
		related: []espiLink{{"espi-feed/MeterReading", path + "/MeterReading"}, {"espi-entry/LocalTimeParameters", zonePath}},
	}
	x.begin(&e)
	for _, w := range a.withheld {
		f, _ := a.profile.FieldByCode(w.Field)
		x.raw(`<extension><withheld xmlns="` + espiExtension + `"`)
		x.attribute("field", f.Name)
		x.attribute("from", w.Days.From.String())
		x.attribute("to", w.Days.To.String())
		x.attribute("reason", w.Reason.String())
		x.raw("/></extension>")
	}
	if c, ok := a.commodity(); ok {
		x.raw("<ServiceCategory>")
		x.element("kind", int64(serviceKinds[c]))
		x.raw("</ServiceCategory>")
	}
	x.end(e.kind)

	e = resource{id: zone, kind: "LocalTimeParameters", self: zonePath, up: espiResource + "/LocalTimeParameters", title: x.loc.String()}
	x.begin(&e)
	dst1, dst2, saving, offset := dstRules(a.query.days.From.Start(x.loc))
	x.raw("<dstEndRule>" + dst2 + "</dstEndRule>")
	x.element("dstOffset", saving)
	x.raw("<dstStartRule>" + dst1 + "</dstStartRule>")
	x.element("tzOffset", offset)
	x.end(e.kind)

	types := map[uuid.UUID]bool{}
	readings := map[uuid.UUID]bool{}
	for i := range a.series {
		x.series(a, &a.series[i], ean, path, types, readings)
	}
	x.raw("</feed>\n")
	return x.b
}

// commodity is that of the metering point, as its fields tell.
func (a *answer) commodity() (meter.Commodity, bool) {
	for i := range a.series {
		f, ok := a.profile.FieldByCode(a.series[i].Field)
		return f.Commodity, ok
	}
	for _, w := range a.withheld {
		f, ok := a.profile.FieldByCode(w.Field)
		return f.Commodity, ok
	}
	return 0, false
}

// series writes a MeterReading with its ReadingType, which several may share,
// and its IntervalBlocks.
func (x *feed) series(a *answer, s *meter.Series, ean, point string, types, readings map[uuid.UUID]bool) {
	f, _ := a.profile.FieldByCode(s.Field)
	kind, resolution := s.Kind.String(), s.Resolution.String()
	typeID := espiName("ReadingType", f.Name, f.OBIS, f.Unit, strconv.Itoa(f.Precision), kind, resolution)
	typePath := espiResource + "/ReadingType/" + typeID.String()
	// Two that differ in nothing else are of two consents.
	id := espiName("MeterReading", ean, f.Name, kind, resolution, s.Basis.String(), s.Rule)
	for n := 2; readings[id]; n++ {
		id = espiName("MeterReading", ean, f.Name, kind, resolution, s.Basis.String(), s.Rule, strconv.Itoa(n))
	}
	readings[id] = true
	path := point + "/MeterReading/" + id.String()
	e := resource{
		id: id, kind: "MeterReading", self: path, up: point + "/MeterReading", title: f.Name + " (" + f.Unit + "), " + kind + ", " + resolution,
		related: []espiLink{{"espi-feed/IntervalBlock", path + "/IntervalBlock"}, {"espi-entry/ReadingType", typePath}},
	}
	x.begin(&e)
	x.raw(`<extension><series xmlns="` + espiExtension + `"`)
	for _, at := range [...][2]string{
		{"field", f.Name}, {"obis", f.OBIS}, {"readingKind", kind}, {"resolution", resolution}, {"unit", f.Unit}, {"legalBasis", s.Basis.String()},
		{"rule", s.Rule}, {"expectedCount", strconv.Itoa(s.Expected)}, {"deliveredCount", strconv.Itoa(s.Delivered)},
	} {
		x.attribute(at[0], at[1])
	}
	x.raw("/></extension>")
	x.end(e.kind)

	if !types[typeID] {
		types[typeID] = true
		e := resource{id: typeID, kind: "ReadingType", self: typePath, up: espiResource + "/ReadingType", title: f.OBIS}
		x.begin(&e)
		x.readingType(&f, s)
		x.end(e.kind)
	}

	// A block for each day of intervals, and one for all that comes by day or
	// month.
	for rest := s.Days; len(rest) > 0; {
		n := len(rest)
		if stepOf(s.Resolution) > 0 {
			n = 1
		}
		x.block(s, rest[:n], id, path)
		rest = rest[n:]
	}
}

// The codes of ESPI.
var (
	serviceKinds = map[meter.Commodity]int{meter.Electricity: 0, meter.Gas: 1}
	commodities  = map[meter.Commodity]int64{meter.Electricity: 1, meter.Gas: 7}
	measurements = map[meter.Commodity]int64{meter.Electricity: 12, meter.Gas: 58} // energy, volume
	units        = map[string]struct{ uom, power int64 }{"Wh": {72, 0}, "kWh": {72, 3}, "MWh": {72, 6}, "m3": {42, 0}}
	qualities    = map[meter.Quality]int64{
		meter.Adjusted:     7,  // manually edited
		meter.NotAvailable: 10, // questionable: only beside a value
		meter.Estimated:    8,  // estimated
		meter.Incomplete:   10, // questionable
		meter.Calculated:   11, // derived
		meter.Temporary:    14, // raw: still to be validated
	}
)

// readingType writes the elements in the order of the schema.
func (x *feed) readingType(f *meter.Field, s *meter.Series) {
	accumulation, period := int64(4), int64(0) // the amount of an interval
	if s.Kind == meter.Register {
		accumulation = 1 // what the dial shows
	}
	switch s.Resolution {
	case meter.P1D:
		period = 11
	case meter.P1M:
		period = 13
	}
	direction, tariff := int64(1), uint8(0) // what goes to the customer
	if o, err := meter.ParseOBIS(f.OBIS); err == nil && f.Commodity == meter.Electricity {
		if o.C == 2 {
			direction = 19 // what comes from the customer
		}
		tariff = o.E
	}
	unit, known := units[f.Unit]
	x.element("accumulationBehaviour", accumulation)
	x.element("commodity", commodities[f.Commodity])
	x.element("dataQualifier", 12)
	x.element("flowDirection", direction)
	if step := stepOf(s.Resolution); step > 0 && s.Kind == meter.Consumption {
		x.element("intervalLength", int64(step/time.Second))
	}
	x.element("kind", measurements[f.Commodity])
	x.element("powerOfTenMultiplier", unit.power-int64(f.Precision))
	x.element("timeAttribute", period)
	if tariff > 0 {
		x.element("tou", int64(tariff))
	}
	if known {
		x.element("uom", unit.uom)
	}
}

// maxESPI is the greatest amount that the schema has room for (Int48).
const maxESPI = 1<<47 - 1

// block writes an IntervalBlock of the values that are known; none when there
// is none.
func (x *feed) block(s *meter.Series, days []meter.SeriesDay, reading uuid.UUID, path string) {
	step := stepOf(s.Resolution)
	period := func(d meter.Day, i int) (start, duration int64) {
		from := d.Start(x.loc).Add(time.Duration(i) * step)
		var to time.Time
		switch {
		case s.Kind == meter.Register:
			to = from // at an instant
		case step > 0:
			to = from.Add(step)
		case s.Resolution == meter.P1M:
			to = d.AddMonths(1).Start(x.loc)
		default:
			to = (d + 1).Start(x.loc)
		}
		return from.Unix(), to.Unix() - from.Unix()
	}
	var first, last int64
	any := false
	for i := range days {
		for j, v := range days[i].Values {
			if writable(v) {
				start, duration := period(days[i].Day, j)
				if !any {
					first, any = start, true
				}
				last = start + duration
			}
		}
	}
	if !any {
		return
	}
	id := espiName("IntervalBlock", reading.String(), strconv.FormatInt(first, 10))
	e := resource{id: id, kind: "IntervalBlock", self: path + "/IntervalBlock/" + id.String(), up: path + "/IntervalBlock"}
	x.begin(&e)
	x.raw("<interval>")
	x.element("duration", last-first)
	x.element("start", first)
	x.raw("</interval>")
	for i := range days {
		d := &days[i]
		for j, v := range d.Values {
			if !writable(v) {
				continue
			}
			x.raw("\n<IntervalReading>")
			if d.Quality != nil && d.Quality[j] != meter.AsProvided {
				x.raw("<ReadingQuality>")
				x.element("quality", qualities[d.Quality[j]])
				x.raw("</ReadingQuality>")
			}
			start, duration := period(d.Day, j)
			x.raw("<timePeriod>")
			x.element("duration", duration)
			x.element("start", start)
			x.raw("</timePeriod>")
			x.element("value", int64(v))
			x.raw("</IntervalReading>")
		}
	}
	x.end(e.kind)
}

func writable(v meter.Value) bool { return v != meter.Null && -maxESPI <= v && v <= maxESPI }

// dstRules are the rules by which local time is put forward and back in the
// years around a moment, as the schema encodes them, by how much, and the
// offset of standard time: seconds. Where the clocks are not changed, or by
// no rule that can be written, the rules say so; the times in a feed are right
// all the same.
func dstRules(at time.Time) (begin, end string, saving, offset int64) {
	const none = "FFFFFFFF"
	loc, year := at.Location(), at.Year()
	_, standard := time.Date(year, 1, 1, 0, 0, 0, 0, loc).Zone()
	var begins, ends dstRule
	for y := year - 2; y <= year+2; y++ {
		for t := time.Date(y, 1, 1, 0, 0, 0, 0, loc); ; {
			_, next := t.ZoneBounds()
			if next.IsZero() || next.Year() > y {
				break
			}
			_, before := next.Add(-time.Second).Zone()
			_, after := next.Zone()
			wall := next.In(time.FixedZone("", before)) // what the clocks show when they are changed
			switch {
			case after > before && next.IsDST():
				begins = begins.narrow(wall)
				if y == year {
					saving, standard = int64(after-before), before
				}
			case after < before && !next.IsDST():
				ends = ends.narrow(wall)
			}
			t = next
		}
	}
	if !begins.one() || !ends.one() || saving == 0 {
		return none, none, 0, int64(standard)
	}
	return begins.String(), ends.String(), saving, int64(standard)
}

// dstRule is a day of a month by its weekday, at a time of that day, as far as
// several years agree on it.
type dstRule struct {
	month    time.Month
	weekday  time.Weekday
	clock    int // seconds of the day
	nth      int // 1 to 4: of its kind in the month; 0: not always the same
	last     bool
	seen, no bool
}

// narrow is the rule that fits a further year's change, too.
func (r dstRule) narrow(wall time.Time) dstRule {
	n := dstRule{
		month: wall.Month(), weekday: wall.Weekday(), clock: wall.Hour()*3600 + wall.Minute()*60 + wall.Second(),
		nth: (wall.Day() + 6) / 7, last: wall.AddDate(0, 0, 7).Month() != wall.Month(), seen: true,
	}
	if !r.seen {
		return n
	}
	n.no = r.no || r.month != n.month || r.weekday != n.weekday || r.clock != n.clock
	n.last = n.last && r.last
	if n.nth != r.nth || n.nth > 4 {
		n.nth = 0
	}
	return n
}

func (r dstRule) one() bool { return r.seen && !r.no && (r.last || r.nth > 0) }

// String is the bit map of the schema, in hexadecimal.
func (r dstRule) String() string {
	operator := uint32(7) // the last one of the month
	if !r.last {
		operator = uint32(r.nth) + 1
	}
	weekday := uint32(r.weekday)
	if r.weekday == time.Sunday {
		weekday = 7
	}
	bits := uint32(r.clock%3600) | uint32(r.clock/3600)<<12 | weekday<<17 | operator<<25 | uint32(r.month)<<28
	return upperHex(bits)
}

func upperHex(n uint32) string {
	b := hex.AppendEncode(nil, binary.BigEndian.AppendUint32(nil, n))
	for i, c := range b {
		if c >= 'a' {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// appendXML writes text so that it is nothing but text (XML 1.0, 2.2 and 2.4):
// what may not be in a document becomes U+FFFD.
func appendXML(dst []byte, s string) []byte {
	for _, r := range s {
		switch {
		case r == '&':
			dst = append(dst, "&amp;"...)
		case r == '<':
			dst = append(dst, "&lt;"...)
		case r == '>':
			dst = append(dst, "&gt;"...)
		case r == '"':
			dst = append(dst, "&#34;"...)
		case r == '\t' || r == '\n' || r == '\r': // would be taken for a space in an attribute
			dst = append(dst, "&#"...)
			dst = strconv.AppendInt(dst, int64(r), 10)
			dst = append(dst, ';')
		case r < 0x20, r == 0xFFFE, r == 0xFFFF:
			dst = append(dst, "\uFFFD"...)
		default: // a byte that is not UTF-8 has become U+FFFD
			dst = append(dst, string(r)...)
		}
	}
	return dst
}

// espiSize is enough for the feed: see size.
func (a *answer) espiSize() int {
	const (
		ofFeed, ofEntry, ofWithheld = 4096, 1024, 512
		ofValue                     = 232
	)
	n := ofFeed + ofWithheld*len(a.withheld)
	for i := range a.series {
		s := &a.series[i]
		n += 4*ofEntry + 2*len(s.Rule)
		for j := range s.Days {
			n += len(s.Days[j].Values) * ofValue
			if stepOf(s.Resolution) > 0 {
				n += ofEntry
			}
		}
	}
	return n
}
