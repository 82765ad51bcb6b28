package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/go-chi/chi/v5"
	openapi_types "github.com/oapi-codegen/runtime/types"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
)

// accessParams are the parameters of getAccess as text; empty: not given.
type accessParams struct{ ean, from, to, purpose, supplier string }

func boundAccessParams(r openapi.GetAccessRequestObject) accessParams {
	p := accessParams{ean: r.Ean}
	if r.Params.From != nil {
		p.from = r.Params.From.String()
	}
	if r.Params.To != nil {
		p.to = r.Params.To.String()
	}
	if r.Params.Purpose != nil {
		p.purpose = string(*r.Params.Purpose)
	}
	if r.Params.Supplier != nil {
		p.supplier = *r.Params.Supplier
	}
	return p
}

// accessQuery is a dry run understood.
type accessQuery struct {
	ean      meter.EAN
	purpose  meter.Purpose  // 0: every purpose
	supplier meter.GLN      // whose access an employee asks about; zero: the caller's own
	days     meter.DayRange // empty: all that is retained
}

func (p accessParams) parse() (accessQuery, paramErrors) {
	var q accessQuery
	var errs paramErrors
	var err error
	if q.ean, err = meter.ParseEAN(p.ean); err != nil {
		errs.add("/path/ean", wantEAN)
	}
	if p.purpose != "" {
		if q.purpose, err = meter.ParsePurpose(p.purpose); err != nil {
			errs.add("/query/purpose", wantPurpose)
		}
	}
	if p.supplier != "" {
		if q.supplier, err = meter.ParseGLN(p.supplier); err != nil {
			errs.add("/query/supplier", wantGLN)
		}
	}
	switch {
	case p.from == "" && p.to == "":
	case p.to == "":
		errs.add("/query/to", "must be given together with from")
	case p.from == "":
		errs.add("/query/from", "must be given together with to")
	default:
		var fromErr, toErr error
		if q.days.From, fromErr = meter.ParseDay(p.from); fromErr != nil {
			errs.add("/query/from", wantDay)
		}
		if q.days.To, toErr = meter.ParseDay(p.to); toErr != nil {
			errs.add("/query/to", wantDay)
		}
		switch {
		case fromErr != nil || toErr != nil:
		case q.days.Empty():
			errs.add("/query/to", "must be later than from")
		case q.days.Len() > authz.MaxAccessDays:
			errs.add("/query/to", "must be at most 3653 days after from")
		}
	}
	if len(errs) > 0 {
		return accessQuery{}, errs
	}
	return q, nil
}

// checkAccess finds the faults of a getAccess request that the contract cannot
// say.
func checkAccess(_ *Server, r *http.Request) paramErrors {
	q := r.URL.Query()
	_, errs := accessParams{ean: chi.URLParam(r, "ean"), from: q.Get("from"), to: q.Get("to"), purpose: q.Get("purpose"), supplier: q.Get("supplier")}.parse()
	return errs
}

// GetAccess answers GET /v1/metering-points/{ean}/access.
func (s *Server) GetAccess(ctx context.Context, r openapi.GetAccessRequestObject) (openapi.GetAccessResponseObject, error) {
	q, errs := boundAccessParams(r).parse()
	if len(errs) > 0 {
		return nil, failParams(errs)
	}
	a, err := s.access(ctx, callOf(ctx), q)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// access is the dry run: the steps of readings without the opening. Up to the
// refusal of an unknown or foreign metering point they are the same.
func (s *Server) access(ctx context.Context, c *call, q accessQuery) (*body, error) {
	now := s.now()
	if q.days.Empty() {
		q.days = authz.Retained(s.profile, now)
	}
	rec := s.newRecord(ctx, c.caller, now)
	rec.EAN, rec.Purpose, rec.Days, rec.Profile = q.ean, q.purpose, q.days, s.profile.Digest()
	rec.Operation, rec.Outcome = audit.DryRun, audit.Given
	if err := s.onErrand(ctx, c, rec); err != nil {
		return nil, err
	}
	var who authz.Caller = c.caller
	if !q.supplier.IsZero() {
		if c.caller.Employee() == nil {
			return nil, s.refuse(ctx, rec, audit.NoRelation, fail(notPermitted, errors.New("a supplier asks about itself only")))
		}
		who = authz.OnBehalfOf(c.caller, q.supplier)
	}
	release, err := s.turn(ctx, c.caller.Supplier())
	if err != nil {
		return nil, err
	}
	defer release()
	newest, err := s.facts.LegalFile(ctx, q.ean)
	if err != nil {
		return nil, fail(databaseUnavailable, fmt.Errorf("legal file: %w", err))
	}
	file, err := s.legalFile(newest, q.ean)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fail(evidenceInvalid, err))
	}
	commodity := meter.Electricity // of an unknown one it is never seen: see readings
	if file != nil {
		commodity = file.Commodity()
	}
	request := authz.AccessRequest{EAN: q.ean, Purpose: q.purpose, Days: q.days}
	for _, f := range s.profile.Fields(commodity) {
		request.Fields = append(request.Fields, f.Code)
	}
	a, err := authz.DryRun(who, request, file, s.profile, now)
	if err != nil {
		return nil, s.refuseNoRelation(ctx, rec, err)
	}
	rec.Fields, rec.LegalFile, rec.FileVersion = request.Fields, file.Digest(), file.Version()
	rec.Granted = audit.AccessItems(a)

	var stored []StoredRun
	if grants := a.Grants(); len(grants) > 0 {
		if stored, err = s.rows.Stored(ctx, grants); err != nil {
			return nil, s.recordFailure(ctx, rec, fail(databaseUnavailable, fmt.Errorf("stored days: %w", err)))
		}
	}
	rendered, err := json.Marshal(s.renderAccess(eventOf(ctx), q, now, a, stored))
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fmt.Errorf("rendering a dry run: %w", err))
	}
	release()
	if err := s.record(ctx, rec); err != nil {
		return nil, err
	}
	return callOf(ctx).rendered(rendered), nil
}

func (s *Server) renderAccess(ev *event, q accessQuery, now time.Time, a authz.Access, stored []StoredRun) openapi.Access {
	out := openapi.Access{
		InteractionId: ev.interaction, Ean: q.ean.String(), From: date(q.days.From), To: date(q.days.To),
		TimeZone: s.profile.Location().String(), ProfileVersion: s.profile.Version(), DecidedAt: now.UTC().Truncate(time.Second),
		Granted: []openapi.AccessGranted{}, Withheld: []openapi.AccessWithheld{}, Stored: []openapi.AccessStored{}, // [] and not null
	}
	name := func(code meter.FieldCode) string {
		f, _ := s.profile.FieldByCode(code)
		return f.Name
	}
	out.Granted = append(out.Granted, s.renderGranted(a)...)
	for _, w := range a.Withheld() {
		out.Withheld = append(out.Withheld, openapi.AccessWithheld{
			Purpose: openapi.Purpose(w.Purpose.String()), Field: name(w.Field), From: date(w.Days.From), To: date(w.Days.To),
			Reason: openapi.WithheldReason(w.Reason.String()),
		})
	}
	for _, r := range stored {
		out.Stored = append(out.Stored, openapi.AccessStored{
			Field: name(r.Field), From: date(r.Days.From), To: date(r.Days.To),
			Resolution: openapi.Resolution(r.Resolution.String()), LastStoredAt: r.LastStored.UTC().Truncate(time.Second),
		})
	}
	return out
}

// renderGranted lists what may be read, by purpose, field and day.
func (s *Server) renderGranted(a authz.Access) []openapi.AccessGranted {
	type line struct {
		authz.AccessItem
		days meter.DayRange
	}
	var lines []line
	for _, it := range a.Items() {
		for _, days := range it.Days.Ranges() {
			lines = append(lines, line{it, days})
		}
	}
	slices.SortStableFunc(lines, func(x, y line) int {
		return cmp.Or(cmp.Compare(x.Purpose, y.Purpose), cmp.Compare(x.Field, y.Field), cmp.Compare(x.days.From, y.days.From))
	})
	out := make([]openapi.AccessGranted, len(lines)) // [] and not null
	for i, l := range lines {
		f, _ := s.profile.FieldByCode(l.Field)
		out[i] = openapi.AccessGranted{
			Purpose: openapi.Purpose(l.Purpose.String()), Field: f.Name, From: date(l.days.From), To: date(l.days.To),
			LegalBasis: openapi.LegalBasis(l.Basis.String()), Rule: l.Rule,
			Granularity: openapi.Resolution(l.Granularity.String()), ReadingKind: openapi.ReadingKind(l.Kind.String()),
		}
	}
	return out
}

func date(d meter.Day) openapi_types.Date {
	y, m, dd := d.Date()
	return openapi_types.Date{Time: time.Date(y, m, dd, 0, 0, 0, 0, time.UTC)}
}

func (b *body) VisitGetAccessResponse(w http.ResponseWriter) error { return b.write(w) }
