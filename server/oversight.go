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

	openapi_types "github.com/oapi-codegen/runtime/types"

	"kluis/auditlog/oversight"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
)

// Overseer tells what the auditor's daemon counted and found. An error means that
// the database did not serve.
type Overseer interface {
	Overview(ctx context.Context, days meter.DayRange) (oversight.Overview, error)
}

const (
	oversightDays    = 7 // told when nothing is said
	maxOversightDays = 31
)

// oversightPeriod reads the parameters; empty: not given.
func (s *Server) oversightPeriod(from, to string) (meter.DayRange, paramErrors) {
	var errs paramErrors
	if from == "" && to == "" {
		today := meter.DayOf(s.now(), s.profile.Location())
		return meter.DayRange{From: today - oversightDays + 1, To: today + 1}, nil
	}
	day := func(name, text string) meter.Day {
		d, err := meter.ParseDay(text)
		if text == "" {
			errs.add("/query/"+name, "must be given together with the other day")
		} else if err != nil {
			errs.add("/query/"+name, wantDay)
		}
		return d
	}
	days := meter.DayRange{From: day("from", from), To: day("to", to)}
	switch {
	case len(errs) > 0:
	case days.Empty():
		errs.add("/query/to", "must be later than from")
	case days.To-days.From > maxOversightDays:
		errs.add("/query/to", fmt.Sprintf("must be at most %d days later than from", maxOversightDays))
	}
	return days, errs
}

// checkOversight finds the faults that the contract cannot say.
func checkOversight(s *Server, r *http.Request) paramErrors {
	q := r.URL.Query()
	_, errs := s.oversightPeriod(q.Get("from"), q.Get("to"))
	return errs
}

// GetOversight answers GET /v1/oversight.
func (s *Server) GetOversight(ctx context.Context, r openapi.GetOversightRequestObject) (openapi.GetOversightResponseObject, error) {
	c, now := callOf(ctx), s.now()
	text := func(d *openapi_types.Date) string {
		if d == nil {
			return ""
		}
		return d.String()
	}
	days, errs := s.oversightPeriod(text(r.Params.From), text(r.Params.To))
	if len(errs) > 0 {
		return nil, failParams(errs)
	}
	if c.caller.Employee() == nil { // the contract's table says so too
		return nil, fail(notPermitted, errors.New("oversight is for employees"))
	}
	rec := s.newRecord(ctx, c.caller, now)
	rec.Operation = audit.Oversee
	if err := s.onErrand(ctx, c, rec); err != nil {
		return nil, err
	}
	o, err := s.overseer.Overview(ctx, days)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fail(databaseUnavailable, fmt.Errorf("oversight: %w", err)))
	}
	head, err := s.health.LogHead(ctx)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fail(databaseUnavailable, fmt.Errorf("oversight: head of the log: %w", err)))
	}
	out := renderOversight(o, head)
	out.InteractionId, out.At = eventOf(ctx).interaction, now.UTC().Truncate(time.Second)
	out.From, out.To, out.TimeZone = date(days.From), date(days.To), s.profile.Location().String()
	rendered, err := json.Marshal(out)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fmt.Errorf("rendering oversight: %w", err))
	}
	rec.Outcome = audit.Given
	if err := s.record(ctx, rec); err != nil {
		return nil, err
	}
	return c.rendered(rendered), nil
}

func (b *body) VisitGetOversightResponse(w http.ResponseWriter) error { return b.write(w) }

func renderOversight(o oversight.Overview, head *LogHead) openapi.Oversight {
	when := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		t = t.UTC().Truncate(time.Second)
		return &t
	}
	party := func(p oversight.Party) (openapi.PartyKind, string) {
		if p.Employee != "" {
			return openapi.PartyEmployee, p.Employee
		}
		return openapi.PartySupplier, p.GLN.String()
	}
	out := openapi.Oversight{
		CountedAt: when(o.CountedAt),
		Log: openapi.OversightLog{CheckedAt: when(o.Checks.Newest), VerifiedAt: when(o.Checks.Whole),
			CheckedSize: int(o.Checks.Size), Result: openapi.LogOk, Findings: []openapi.OversightFinding{}},
		Parties: []openapi.OversightParty{}, Unusual: []openapi.OversightUnusual{}, Hours: []openapi.OversightHour{}, // [] and not null
	}
	if head != nil {
		out.Log.Size, out.Log.SignedAt = int(head.Size), when(head.SignedAt)
	}
	for _, f := range o.Checks.Findings {
		out.Log.Findings = append(out.Log.Findings, openapi.OversightFinding{Code: f.Code, Count: int(f.Count)})
	}
	switch {
	case len(o.Checks.Findings) > 0:
		out.Log.Result = openapi.LogFindings
	case o.Checks.Newest.IsZero():
		out.Log.Result = openapi.LogNever
	}
	for _, p := range o.Parties {
		kind, name := party(p.Party)
		out.Parties = append(out.Parties, openapi.OversightParty{Kind: kind, Name: name,
			Requests: int(p.Requests), Refused: int(p.Refused), MeteringPoints: int(p.Points), OffHours: int(p.OffHours)})
	}
	slices.SortStableFunc(out.Parties, func(a, b openapi.OversightParty) int { return cmp.Compare(b.Requests, a.Requests) })
	for _, u := range o.Unusual {
		kind, name := party(u.Party)
		out.Unusual = append(out.Unusual, openapi.OversightUnusual{Kind: openapi.OversightUnusualKind(u.Kind.String()), Party: name, PartyKind: kind,
			From: u.From.UTC(), To: u.To.UTC(), Count: int(u.Count), Usual: int(u.Usual)})
	}
	for _, h := range o.Hours {
		out.Hours = append(out.Hours, openapi.OversightHour{At: h.At.UTC(), Requests: int(h.Requests), Refused: int(h.Refused)})
	}
	return out
}
