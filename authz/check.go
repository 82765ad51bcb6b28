package authz

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"kluis/internal/canonical"
	"kluis/meter"
)

// Bounds of the formats. A sealed fact beyond them does not parse.
const (
	maxOccupancies   = 1024
	maxSupplyPeriods = 1024
	maxConsents      = 1024
	maxOptOuts       = 1024
	maxClasses       = 16
	maxEvidence      = 128 // bytes
	maxActor         = 128 // bytes
	maxName          = 128 // bytes
	maxScope         = 64  // bytes
	maxScopes        = 16
	maxCertificates  = 64
	maxStep          = 512 // bytes, encoded
	maxPayload       = 1 << 20
)

// lastDay is 9999-12-31, the last day that facts can name besides MaxDay.
const lastDay meter.Day = 2932896

// The formats hold instants from firstTime to before lastTime.
var (
	firstTime = time.UnixMicro(1)
	lastTime  = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
)

func knownResolution(r meter.Resolution) bool { return meter.PT15M <= r && r <= meter.P1M }
func knownKind(k meter.Kind) bool             { return k == meter.Register || k == meter.Consumption }
func knownClass(c meter.Class) bool           { return c == meter.Registers || c == meter.Intervals }
func knownCommodity(c meter.Commodity) bool   { return c == meter.Electricity || c == meter.Gas }
func knownPurpose(p meter.Purpose) bool       { return meter.Billing <= p && p <= meter.CustomerService }

// validDay says whether a fact may start on the day.
func validDay(d meter.Day) bool { return 0 <= d && d <= lastDay }

// validDays says whether a fact may hold for the days: not empty, with an end
// in the calendar or none (MaxDay).
func validDays(r meter.DayRange) bool {
	return validDay(r.From) && !r.Empty() && (r.To <= lastDay || r.To == meter.MaxDay)
}

// validTime says whether the formats can hold the instant.
func validTime(t time.Time) bool { return !t.Before(firstTime) && t.Before(lastTime) }

// micros cuts an instant to what the formats hold.
func micros(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return time.UnixMicro(t.UnixMicro()).UTC()
}

// plainText says whether s is one line of 1 to max bytes of printable UTF-8.
func plainText(s string, max int) bool {
	if s == "" || len(s) > max || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

// reference says whether s can refer to evidence: plain text without a blank at
// either end, so that it says something, and no two are alike to the eye.
func reference(s string) bool {
	return plainText(s, maxEvidence) && strings.TrimSpace(s) == s
}

func writeDays(w *canonical.Writer, r meter.DayRange) {
	w.I32(int32(r.From))
	w.I32(int32(r.To))
}

func readDays(r *canonical.Reader) meter.DayRange {
	d := meter.DayRange{From: meter.Day(r.I32()), To: meter.Day(r.I32())}
	if r.Err() == nil && !validDays(d) {
		r.Refuse("days out of range or in the wrong order")
	}
	return d
}

func readEAN(r *canonical.Reader) meter.EAN {
	e, err := meter.EANFromInt64(int64(r.U64()))
	if r.Err() == nil && err != nil {
		r.Refuse("no EAN-18")
	}
	return e
}

func readGLN(r *canonical.Reader) meter.GLN {
	g, err := meter.GLNFromInt64(int64(r.U64()))
	if r.Err() == nil && err != nil {
		r.Refuse("no GLN")
	}
	return g
}

// readGLNOrNone reads a party, or the zero GLN for nobody.
func readGLNOrNone(r *canonical.Reader) meter.GLN {
	n := r.U64()
	if n == 0 {
		return meter.GLN{}
	}
	g, err := meter.GLNFromInt64(int64(n))
	if r.Err() == nil && err != nil {
		r.Refuse("no GLN")
	}
	return g
}

// readTime reads an instant that must be there.
func readTime(r *canonical.Reader) time.Time {
	t := r.Time()
	if r.Err() == nil && !validTime(t) {
		r.Refuse("time out of range")
	}
	return t
}

// readTimeOrNone reads an instant that may be the zero time.
func readTimeOrNone(r *canonical.Reader) time.Time {
	t := r.Time()
	if r.Err() == nil && !t.IsZero() && !validTime(t) {
		r.Refuse("time out of range")
	}
	return t
}

func readText(r *canonical.Reader, max int) string {
	s := r.String(max)
	if r.Err() == nil && !plainText(s, max) {
		r.Refuse("text empty or not printable")
	}
	return s
}

func readReference(r *canonical.Reader) string {
	s := r.String(maxEvidence)
	if r.Err() == nil && !reference(s) {
		r.Refuse("reference to evidence empty, not printable, or with a blank at an end")
	}
	return s
}

func writeClasses(w *canonical.Writer, classes []meter.Class) {
	w.Count(len(classes))
	for _, c := range classes {
		w.U8(uint8(c))
	}
}

// readClasses reads at least one class, in ascending order.
func readClasses(r *canonical.Reader) []meter.Class {
	n := r.Count(maxClasses)
	classes := make([]meter.Class, n)
	for i := range classes {
		classes[i] = meter.Class(r.U8())
		if r.Err() == nil && (!knownClass(classes[i]) || i > 0 && classes[i-1] >= classes[i]) {
			r.Refuse("classes unknown or not in order")
		}
	}
	if r.Err() == nil && n == 0 {
		r.Refuse("no class")
	}
	return classes
}
