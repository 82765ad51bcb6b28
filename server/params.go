package server

import (
	"net/url"
	"slices"
	"strings"
	"time"

	"kluis/authz"
	"kluis/meter"
	"kluis/openapi"
)

// paramErrors collects the faults of a request: one per parameter, none of
// which repeats what was sent.
type paramErrors []openapi.ParameterError

func (e *paramErrors) add(pointer, reason string) {
	if !slices.ContainsFunc(*e, func(p openapi.ParameterError) bool {
		return p.Pointer == pointer && (pointer != "/query" || p.Reason == reason)
	}) {
		*e = append(*e, openapi.ParameterError{Pointer: pointer, Reason: reason})
	}
}

// readingsParams are the parameters of getReadings as text; empty: not given.
type readingsParams struct {
	ean, from, to, purpose, class, resolution, kind, asOf string
	fields                                                []string
}

// boundReadingsParams takes them from the generated binding.
func boundReadingsParams(r openapi.GetReadingsRequestObject) readingsParams {
	p := readingsParams{
		ean:     r.Ean,
		from:    r.Params.From.String(),
		to:      r.Params.To.String(),
		purpose: string(r.Params.Purpose),
	}
	if r.Params.Fields != nil {
		p.fields = *r.Params.Fields
	}
	if r.Params.Class != nil {
		p.class = string(*r.Params.Class)
	}
	if r.Params.Resolution != nil {
		p.resolution = string(*r.Params.Resolution)
	}
	if r.Params.Kind != nil {
		p.kind = string(*r.Params.Kind)
	}
	if r.Params.AsOf != nil {
		p.asOf = r.Params.AsOf.Format(time.RFC3339Nano)
	}
	return p
}

// sentReadingsParams takes them as sent, for a request that the contract
// refuses: its other faults are told together.
func sentReadingsParams(ean string, q url.Values) readingsParams {
	p := readingsParams{
		ean: ean, from: q.Get("from"), to: q.Get("to"), purpose: q.Get("purpose"),
		class: q.Get("class"), resolution: q.Get("resolution"), kind: q.Get("kind"), asOf: q.Get("asOf"),
	}
	if f := q.Get("fields"); f != "" {
		p.fields = strings.Split(f, ",")
	}
	return p
}

// query is a reading request understood. Which fields are meant is known only
// with the metering point's commodity: see request.
type query struct {
	ean        meter.EAN
	purpose    meter.Purpose
	days       meter.DayRange
	fields     []meter.FieldCode // as named; empty: by class
	class      meter.Class       // 0: every class
	resolution meter.Resolution  // 0: not said
	kind       meter.Kind        // 0: not said
	asOf       time.Time         // as it was stored then; zero: as it is
}

// parse understands the parameters, or says everything that is wrong with
// them. What is missing though required is the contract's to say.
func (p readingsParams) parse(profile *meter.Profile, now time.Time) (query, paramErrors) {
	var q query
	var errs paramErrors
	var err error
	if q.ean, err = meter.ParseEAN(p.ean); err != nil {
		errs.add("/path/ean", wantEAN)
	}
	parseDay := func(pointer, s string) (meter.Day, bool) {
		d, err := meter.ParseDay(s)
		if err != nil {
			errs.add(pointer, wantDay)
		}
		return d, err == nil
	}
	var fromOK, toOK bool
	q.days.From, fromOK = parseDay("/query/from", p.from)
	q.days.To, toOK = parseDay("/query/to", p.to)
	if fromOK && toOK {
		switch {
		case q.days.Empty():
			errs.add("/query/to", "must be later than from")
		case q.days.Len() > authz.MaxRequestDays:
			errs.add("/query/to", "must be at most 366 days after from")
		}
	}
	if q.purpose, err = meter.ParsePurpose(p.purpose); err != nil {
		errs.add("/query/purpose", wantPurpose)
	}
	for _, name := range p.fields {
		f, ok := profile.Field(name)
		switch {
		case !ok:
			errs.add("/query/fields", "must be names of the market profile's fields, separated by commas")
		case slices.Contains(q.fields, f.Code):
			errs.add("/query/fields", "must not name a field twice")
		default:
			q.fields = append(q.fields, f.Code)
		}
	}
	if p.class != "" {
		if q.class, err = meter.ParseClass(p.class); err != nil {
			errs.add("/query/class", "must be one of registers, intervals")
		}
		if len(p.fields) > 0 {
			errs.add("/query/class", "must not be given together with fields")
		}
	}
	if p.resolution != "" {
		if q.resolution, err = meter.ParseResolution(p.resolution); err != nil {
			errs.add("/query/resolution", "must be one of PT15M, PT1H, P1D, P1M")
		}
	}
	if p.kind != "" {
		if q.kind, err = meter.ParseKind(p.kind); err != nil {
			errs.add("/query/kind", "must be one of REGISTER, CONSUMPTION")
		}
	}
	if p.asOf != "" {
		if q.asOf, err = parseAsOf(p.asOf, now); err != nil {
			errs.add("/query/asOf", wantAsOf)
		}
	}
	if len(errs) > 0 {
		return query{}, errs
	}
	return q, nil
}

const (
	wantDay     = "must be a calendar day, YYYY-MM-DD, from 1970 on"
	wantPurpose = "must be one of BILLING, ENERGY_MANAGEMENT, SWITCH, MOVE, CUSTOMER_SERVICE"
)

// request is the query for a metering point of a commodity.
func (q query) request(commodity meter.Commodity, profile *meter.Profile) authz.Request {
	fields := q.fields
	if len(fields) == 0 {
		for _, f := range profile.Fields(commodity) {
			if q.class == 0 || f.Class == q.class {
				fields = append(fields, f.Code)
			}
		}
	}
	return authz.Request{
		EAN: q.ean, Purpose: q.purpose, Days: q.days, Fields: fields, Resolution: q.resolution, Kind: q.kind,
	}
}
