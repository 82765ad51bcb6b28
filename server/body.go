package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"kluis/internal/strictjson"
	"kluis/meter"
)

// maxBody bounds the body of the operations that have one.
const maxBody = 8 << 10

// readBody takes in the whole body of an operation that has one, bounded, and
// puts it back for the generated code. What is in it is judged later, together
// with the parameters.
func (s *Server) readBody(rt *route) func(http.Handler) http.Handler {
	if !rt.body {
		return func(next http.Handler) http.Handler { return next }
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !isJSON(r.Header) {
				s.writeFailure(w, r, fail(unsupportedMediaType, nil))
				return
			}
			leave := func() {}
			if rt.bodyLimit() > maxBody {
				c := callOf(r.Context())
				n := rt.bodyLimit()
				if r.ContentLength >= 0 {
					n = r.ContentLength
				}
				taken, err := s.limits.takeRoom(r.Context(), c.caller.Supplier(), n)
				if err != nil {
					s.writeFailure(w, r, err)
					return
				}
				c.atEnd(taken)
				leave = taken
			}
			r.Body = http.MaxBytesReader(w, r.Body, rt.bodyLimit())
			var b []byte
			var err error
			if rt.take != nil {
				// The generated code has nothing left to read.
				b, err = []byte("{}"), rt.take(s, w, r)
				leave() // who answers takes room of its own, for what was understood, too
			} else {
				b, err = io.ReadAll(r.Body)
			}
			if _, long := errors.AsType[*http.MaxBytesError](err); long {
				s.writeFailure(w, r, fail(contentTooLarge, nil))
				return
			}
			if err != nil {
				s.writeFailure(w, r, failParams(paramErrors{{Pointer: "/body", Reason: "broke off: send it whole"}}))
				return
			}
			callOf(r.Context()).body = b
			r.Body = io.NopCloser(bytes.NewReader(b))
			next.ServeHTTP(w, r)
		})
	}
}

// isJSON says whether the body is said to be application/json, in UTF-8 as
// JSON is (RFC 8259, 8.1), and not encoded once more.
func isJSON(h http.Header) bool {
	if len(h.Values("Content-Type")) != 1 || len(h.Values("Content-Encoding")) > 0 {
		return false
	}
	media, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil || media != "application/json" {
		return false
	}
	charset, said := params["charset"]
	return len(params) == 0 || len(params) == 1 && said && strings.EqualFold(charset, "utf-8")
}

// bodyReader reads the members of a body, and collects what is wrong with
// them. No fault repeats what was sent, nor a name that is not the contract's.
type bodyReader struct {
	m    map[string]json.RawMessage
	errs paramErrors
}

// newBodyReader takes a body that may have the members known.
func newBodyReader(b []byte, known ...string) *bodyReader {
	r := &bodyReader{}
	var err error
	if r.m, err = strictjson.Object(b); err != nil {
		r.errs.add("/body", "must be one JSON object, without repeated members, and nothing after it")
		return r
	}
	for name := range r.m {
		if !slices.Contains(known, name) {
			r.errs.add("/body", "must hold no unknown members; known are "+strings.Join(known, ", "))
		}
	}
	return r
}

// text reads a string. absent: there is none, which is a fault if it is
// required, unless the whole body is one.
func (r *bodyReader) text(name string, required bool, want string) (s string, ok bool) {
	v, there := r.m[name]
	if !there {
		if required && r.m != nil {
			r.errs.add("/body/"+name, "is required")
		}
		return "", false
	}
	if v[0] != '"' || json.Unmarshal(v, &s) != nil {
		r.errs.add("/body/"+name, want)
		return "", false
	}
	return s, true
}

// member reads a string as what it stands for.
func member[T any](r *bodyReader, name string, required bool, want string, parse func(string) (T, error)) (v T, ok bool) {
	s, ok := r.text(name, required, want)
	if !ok {
		return v, false
	}
	v, err := parse(s)
	if err != nil {
		var none T
		r.errs.add("/body/"+name, want)
		return none, false
	}
	return v, true
}

// newConsent is the body of createConsent, understood.
type newConsent struct {
	ean         meter.EAN
	supplier    meter.GLN // zero: not said
	purpose     meter.Purpose
	classes     []meter.Class // ascending
	granularity meter.Resolution
	days        meter.DayRange // To is meter.MaxDay when open
	validUntil  time.Time      // UTC
	evidence    string
}

const (
	wantGLN        = "must be a GLN: 13 digits, the last a valid GS1 check digit"
	wantClasses    = "must be a list of different classes: registers, intervals"
	wantResolution = "must be one of PT15M, PT1H, P1D, P1M"
	wantInstant    = "must be a time in whole seconds, such as 2027-06-01T00:00:00Z (RFC 3339), from 1970 on"
	wantEvidence   = "must be a reference to the evidence, in 1 to 128 printable bytes on one line, without a blank at either end"
)

// parseNewConsent reads it; an employee must say for which supplier.
func parseNewConsent(b []byte, employee bool) (newConsent, paramErrors) {
	r := newBodyReader(b, "ean", "supplier", "purpose", "classes", "granularity", "from", "to", "validUntil", "evidence")
	var c newConsent
	c.ean, _ = member(r, "ean", true, wantEAN, meter.ParseEAN)
	c.supplier, _ = member(r, "supplier", employee, wantGLN, meter.ParseGLN)
	c.purpose, _ = member(r, "purpose", true, wantPurpose, meter.ParsePurpose)
	c.classes = r.classes()
	c.granularity, _ = member(r, "granularity", true, wantResolution, meter.ParseResolution)
	from, fromOK := member(r, "from", true, wantDay, meter.ParseDay)
	c.days = meter.DayRange{From: from, To: meter.MaxDay}
	if to, ok := member(r, "to", false, wantDay, meter.ParseDay); ok {
		if c.days.To = to; fromOK && c.days.Empty() {
			r.errs.add("/body/to", "must be later than from")
		}
	}
	c.validUntil, _ = member(r, "validUntil", true, wantInstant, parseInstant)
	c.evidence, _ = member(r, "evidence", true, wantEvidence, parseEvidence)
	if len(r.errs) > 0 {
		return newConsent{}, r.errs
	}
	return c, nil
}

func (r *bodyReader) classes() []meter.Class {
	v, there := r.m["classes"]
	if !there {
		if r.m != nil {
			r.errs.add("/body/classes", "is required")
		}
		return nil
	}
	var names []*string
	if json.Unmarshal(v, &names) != nil || len(names) == 0 {
		r.errs.add("/body/classes", wantClasses)
		return nil
	}
	var classes []meter.Class
	for _, name := range names {
		if name == nil {
			r.errs.add("/body/classes", wantClasses)
			return nil
		}
		class, err := meter.ParseClass(*name)
		if err != nil || slices.Contains(classes, class) {
			r.errs.add("/body/classes", wantClasses)
			return nil
		}
		classes = append(classes, class)
	}
	slices.Sort(classes)
	return classes
}

// parseConsentAnswer reads the body of grantConsent: the reference of the
// evidence.
func parseConsentAnswer(b []byte) (evidence string, errs paramErrors) {
	r := newBodyReader(b, "evidence")
	evidence, _ = member(r, "evidence", true, wantEvidence, parseEvidence)
	return evidence, r.errs
}

// instant is RFC 3339 in whole seconds; package time takes more than that.
var instant = regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2})$`)

func parseInstant(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if t = t.UTC(); err != nil || !instant.MatchString(s) || t.Unix() <= 0 || t.Year() > 9999 {
		return time.Time{}, errors.New("not a time, or out of range")
	}
	return t, nil
}

func parseEvidence(s string) (string, error) {
	if s == "" || len(s) > 128 || strings.TrimSpace(s) != s || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }) {
		return "", errors.New("not printable")
	}
	return s, nil
}
