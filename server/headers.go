package server

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/uuid"
)

// requestID is the client's own id of its request, for its logs and ours: a
// UUID and nothing else, so that nobody chooses what the log holds.
func requestID(h http.Header) (uuid.UUID, bool) {
	sent := h.Values("X-Request-Id")
	if len(sent) != 1 || len(sent[0]) != 36 {
		return uuid.Nil, false
	}
	id, err := uuid.Parse(sent[0])
	return id, err == nil
}

// What the contract says, beside deprecated, of what goes away; docs/VERSIONING.md
// has the policy.
const (
	sinceKey  = "x-kluis-deprecated-since"
	sunsetKey = "x-kluis-sunset"
)

// deprecation is what a caller is told of something that is going away.
type deprecation struct {
	since  time.Time
	sunset time.Time // zero: not known yet
}

// deprecated is what is going away of an operation.
type deprecated struct {
	operation  *deprecation // nil: it stays
	parameters map[string]*deprecation
	docs       string // link to read on
}

// deprecatedOf reads what is deprecated of a route's operation.
func deprecatedOf(doc *openapi3.T, rt *route, docs string) (*deprecated, error) {
	op := doc.Paths.Value(rt.path).GetOperation(rt.method)
	d := &deprecated{parameters: map[string]*deprecation{}, docs: docs}
	var err error
	if d.operation, err = readDeprecation(op.Deprecated, op.Extensions); err != nil {
		return nil, fmt.Errorf("server: %s: %w", op.OperationID, err)
	}
	for _, p := range op.Parameters {
		going, err := readDeprecation(p.Value.Deprecated, p.Value.Extensions)
		if err != nil {
			return nil, fmt.Errorf("server: %s: %s: %w", op.OperationID, p.Value.Name, err)
		}
		if going != nil {
			d.parameters[p.Value.In+" "+p.Value.Name] = going
		}
	}
	return d, nil
}

func readDeprecation(deprecated bool, x map[string]any) (*deprecation, error) {
	since, said := x[sinceKey]
	sunset, ends := x[sunsetKey]
	if !deprecated {
		if said || ends {
			return nil, errors.New("has a date of deprecation, and is not deprecated")
		}
		return nil, nil
	}
	d := &deprecation{}
	var err error
	if d.since, err = contractDay(since); err != nil {
		return nil, fmt.Errorf("%s: %w", sinceKey, err)
	}
	if ends {
		if d.sunset, err = contractDay(sunset); err != nil {
			return nil, fmt.Errorf("%s: %w", sunsetKey, err)
		}
		if d.sunset.Before(d.since.AddDate(1, 0, 0)) {
			return nil, fmt.Errorf("%s: must be a year after %s, at least", sunsetKey, sinceKey)
		}
	}
	return d, nil
}

// contractDay is the start of a day, UTC, written as YYYY-MM-DD.
func contractDay(v any) (time.Time, error) {
	s, _ := v.(string)
	return time.Parse(time.DateOnly, s)
}

// mark tells a caller in the headers (RFC 9745, RFC 8594) what of its request is
// going away: of several, what has been so for longest, and what ends first.
func (d *deprecated) mark(h http.Header, r *http.Request) {
	var used []*deprecation
	if d.operation != nil {
		used = append(used, d.operation)
	}
	if len(d.parameters) > 0 {
		query, _ := url.ParseQuery(r.URL.RawQuery) // what does not parse is refused later
		for key, p := range d.parameters {
			in, name, _ := strings.Cut(key, " ")
			if in == openapi3.ParameterInQuery && query.Has(name) || in == openapi3.ParameterInHeader && len(r.Header.Values(name)) > 0 {
				used = append(used, p)
			}
		}
	}
	if len(used) == 0 {
		return
	}
	slices.SortFunc(used, func(a, b *deprecation) int { return a.since.Compare(b.since) })
	h.Set("Deprecation", fmt.Sprintf("@%d", used[0].since.Unix()))
	var ends time.Time
	for _, u := range used {
		if !u.sunset.IsZero() && (ends.IsZero() || u.sunset.Before(ends)) {
			ends = u.sunset
		}
	}
	if !ends.IsZero() {
		h.Set("Sunset", ends.UTC().Format(http.TimeFormat))
	}
	h.Add("Link", "<"+d.docs+`>; rel="deprecation"; type="text/html"`)
}
