package conformance

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// said is an answer taken apart: what is said, by what it is said of, in the
// order of the answer. Two answers are the same if and only if their facts are.
type said struct {
	keys   []string
	values map[string]string
}

func (s *said) add(value, format string, args ...any) {
	key := fmt.Sprintf(format, args...)
	for base, n := key, 2; ; n++ { // what an answer says twice is two facts
		if _, twice := s.values[key]; !twice {
			break
		}
		key = fmt.Sprintf("%s (again, %d)", base, n)
	}
	s.keys = append(s.keys, key)
	s.values[key] = value
}

// differences says what of got is not as wanted, and what is lacking.
func differences(got, want Answer) []string {
	g, w := got.facts(), want.facts()
	var out []string
	for _, k := range w.keys {
		value, ok := g.values[k]
		switch {
		case !ok:
			out = append(out, fmt.Sprintf("%s: missing, want %s", k, w.values[k]))
		case value != w.values[k]:
			out = append(out, fmt.Sprintf("%s: is %s, want %s", k, value, w.values[k]))
		}
	}
	for _, k := range g.keys {
		if _, ok := w.values[k]; !ok {
			out = append(out, fmt.Sprintf("%s: is %s, and nothing was wanted", k, g.values[k]))
		}
	}
	if len(out) == 0 && !slices.Equal(g.keys, w.keys) {
		out = append(out, "all is there, in another order")
	}
	return out
}

func (a Answer) facts() *said {
	s := &said{values: map[string]string{}}
	s.add(strconv.Itoa(a.Status), "status")
	if a.Problem != "" {
		s.add(a.Problem, "problem")
	}
	for _, p := range slices.Sorted(slices.Values(a.Pointers)) {
		s.add("named", "fault of %s", p)
	}
	if r := a.Readings; r != nil {
		s.add(r.EAN, "ean")
		s.add(r.Purpose, "purpose")
		s.add(r.From+" to "+r.To, "period")
		s.add(r.TimeZone, "timeZone")
		for i := range r.Series {
			r.Series[i].facts(s)
		}
		for _, w := range r.Withheld {
			s.add(w.Reason, "withheld of %s from %s to %s", w.Field, w.From, w.To)
		}
	}
	if x := a.Access; x != nil {
		s.add(x.EAN, "ean")
		s.add(x.From+" to "+x.To, "period")
		s.add(x.TimeZone, "timeZone")
		for _, g := range x.Granted {
			s.add(fmt.Sprint(g.LegalBasis, " ", g.Rule, " ", g.Granularity, " ", g.ReadingKind), "granted for %s of %s from %s to %s", g.Purpose, g.Field, g.From, g.To)
		}
		for _, w := range x.Withheld {
			s.add(w.Reason, "withheld for %s of %s from %s to %s", w.Purpose, w.Field, w.From, w.To)
		}
		for _, d := range x.Stored {
			s.add(d.Resolution, "stored of %s from %s to %s", d.Field, d.From, d.To)
		}
	}
	if a.Media != "" {
		s.add(a.Media, "media type")
	}
	for _, h := range a.Headers {
		s.add("there", "header %s", h)
	}
	for i := range a.Points {
		p := &a.Points[i]
		of := &said{values: map[string]string{}}
		if p.Problem != "" {
			of.add(p.Problem, "problem")
		}
		for j := range p.Series {
			p.Series[j].facts(of)
		}
		for _, w := range p.Withheld {
			of.add(w.Reason, "withheld of %s from %s to %s", w.Field, w.From, w.To)
		}
		s.add(strconv.Itoa(i+1), "%s is number", p.EAN)
		for _, k := range of.keys {
			s.add(of.values[k], "%s: %s", p.EAN, k)
		}
	}
	if m := a.Manifest; m != nil {
		s.add(fmt.Sprintf("%+v", *m), "manifest")
	}
	for _, l := range a.List {
		s.add(l.Commodity+" "+strings.Join(l.LegalBases, ", "), "listed %s", l.EAN)
	}
	for _, c := range a.Consents {
		to := "open"
		if c.To != nil {
			to = *c.To
		}
		of := "consent " + c.ID
		s.add(fmt.Sprint(c.State), "%s state", of)
		s.add(fmt.Sprint(c.EAN, " for ", c.Supplier), "%s parties", of)
		s.add(fmt.Sprint(c.Purpose, " ", c.Classes, " ", c.Granularity, " from ", c.From, " to ", to), "%s scope", of)
		s.add(c.Evidence, "%s evidence", of)
		for i, step := range c.Steps {
			s.add(strings.TrimSpace(fmt.Sprint(step.Step, " by ", step.By, " ", step.Employee)), "%s step %d", of, i+1)
		}
	}
	return s
}

func (x *Series) facts(s *said) {
	of := fmt.Sprintf("%s (%s, %s)", x.Field, x.Rule, x.Resolution)
	s.add(x.ReadingKind, "%s readingKind", of)
	s.add(x.LegalBasis, "%s legalBasis", of)
	s.add(x.OBIS, "%s obis", of)
	s.add(x.Unit, "%s unit", of)
	s.add(strconv.Itoa(x.ExpectedCount), "%s expectedCount", of)
	s.add(strconv.Itoa(x.DeliveredCount), "%s deliveredCount", of)
	for _, d := range x.Days {
		day, clock, _ := strings.Cut(d.Start, "T")
		s.add(clock, "%s on %s start", of, day)
		for i, v := range d.Values {
			text := "null"
			if v != nil {
				text = strconv.Quote(*v)
			}
			s.add(text, "%s on %s value %d", of, day, i)
		}
		for _, q := range d.Quality {
			s.add(q.Quality, "%s on %s quality of %d from %d", of, day, q.Count, q.Index)
		}
	}
}

// Summary is the answer in a line, for people.
func (a Answer) Summary() string {
	var parts []string
	switch {
	case a.Problem != "":
		s := a.Problem
		if len(a.Pointers) > 0 {
			s += " (" + strings.Join(a.Pointers, ", ") + ")"
		}
		return fmt.Sprintf("%d %s", a.Status, s)
	case a.Readings != nil:
		for _, s := range a.Readings.Series {
			parts = append(parts, fmt.Sprintf("%s %s %s, %d of %d (%s)", s.Field, s.ReadingKind, s.Resolution, s.DeliveredCount, s.ExpectedCount, s.LegalBasis))
		}
		for _, w := range a.Readings.Withheld {
			parts = append(parts, fmt.Sprintf("withheld %s %s to %s %s", w.Field, w.From, w.To, w.Reason))
		}
	case a.Access != nil:
		parts = append(parts, fmt.Sprintf("%d runs granted, %d withheld, %d stored", len(a.Access.Granted), len(a.Access.Withheld), len(a.Access.Stored)))
	case a.Consents != nil:
		for _, c := range a.Consents {
			parts = append(parts, "a consent, "+c.State)
		}
	case a.Points != nil:
		given, failed := 0, 0
		for _, p := range a.Points {
			if p.Problem != "" {
				failed++
			} else if len(p.Series) > 0 {
				given++
			}
		}
		parts = append(parts, fmt.Sprintf("%d metering points, %d with values, %d with a problem", len(a.Points), given, failed))
		if a.Manifest != nil {
			parts = append(parts, "a manifest")
		}
	case a.Status == http.StatusNotModified:
		return "304: nothing new"
	default:
		parts = append(parts, fmt.Sprintf("%d metering points", len(a.List)))
	}
	return fmt.Sprintf("%d: %s", a.Status, strings.Join(parts, "; "))
}
