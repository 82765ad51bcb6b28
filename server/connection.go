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

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
)

// GetConnection answers GET /v1/metering-points/{ean}/connection.
func (s *Server) GetConnection(ctx context.Context, r openapi.GetConnectionRequestObject) (openapi.GetConnectionResponseObject, error) {
	ean, err := meter.ParseEAN(r.Ean)
	if err != nil {
		return nil, failParams(paramErrors{{Pointer: "/path/ean", Reason: wantEAN}})
	}
	b, err := s.connection(ctx, callOf(ctx), ean, r.Params.Identity == nil || *r.Params.Identity)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// checkConnection finds the faults of a getConnection request that the contract
// cannot say: there are more spellings of true and false than the two it means.
func checkConnection(s *Server, r *http.Request) paramErrors {
	errs := checkEAN(s, r)
	if q := r.URL.Query(); q.Has("identity") && q.Get("identity") != "true" && q.Get("identity") != "false" {
		errs.add("/query/identity", wantBool)
	}
	return errs
}

// connection tells the facts of the legal file and what is stored. Nothing is
// opened but the name and address, where they are asked for, and when that cannot
// be, the rest stands.
func (s *Server) connection(ctx context.Context, c *call, ean meter.EAN, identity bool) (*body, error) {
	now := s.now()
	rec := s.newRecord(ctx, c.caller, now)
	rec.Operation, rec.EAN, rec.Profile = audit.Connection, ean, s.profile.Digest()
	if c.caller.Employee() == nil { // the contract's table says so too
		return nil, fail(notPermitted, errors.New("a connection is for employees"))
	}
	if err := s.onErrand(ctx, c, rec); err != nil {
		return nil, err
	}
	release, err := s.turn(ctx, c.caller.Supplier())
	if err != nil {
		return nil, err
	}
	defer release()
	stored, err := s.facts.LegalFile(ctx, ean)
	if err != nil {
		return nil, fail(databaseUnavailable, fmt.Errorf("legal file: %w", err))
	}
	file, err := s.legalFile(stored, ean)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fail(evidenceInvalid, err))
	}
	inventory, err := authz.Inventorize(c.caller, file, s.profile, now)
	if err != nil {
		return nil, s.refuseNoRelation(ctx, rec, err)
	}
	rec = on(rec, file)
	runs, err := s.rows.Inventory(ctx, inventory)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fail(databaseUnavailable, fmt.Errorf("stored days: %w", err)))
	}
	names, err := s.namesOf(ctx, partiesOf(file))
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fail(databaseUnavailable, fmt.Errorf("supplier records: %w", err)))
	}
	out := s.renderConnection(file, runs, names, now)
	out.InteractionId = eventOf(ctx).interaction
	out.Identity.State = openapi.IdentityNotAsked
	if identity { // last: what is opened is recorded, whatever comes
		if out.Identity, rec.Receipt = s.identity(ctx, c, file, stored.Sealed); len(rec.Receipt) > 0 {
			rec.Purpose = meter.CustomerService
		}
	}
	rendered, err := json.Marshal(out)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fmt.Errorf("rendering a connection: %w", err))
	}
	rec.Outcome = audit.Given
	release()
	if err := s.record(ctx, rec); err != nil {
		return nil, err
	}
	return c.rendered(rendered), nil
}

func (b *body) VisitGetConnectionResponse(w http.ResponseWriter) error { return b.write(w) }

// partiesOf are the suppliers that a legal file names, by GLN.
func partiesOf(f *authz.LegalFile) []meter.GLN {
	var out []meter.GLN
	for _, p := range f.SupplyPeriods() {
		out = append(out, p.Supplier)
	}
	for _, c := range f.Consents() {
		out = append(out, c.Supplier)
	}
	slices.SortFunc(out, func(a, b meter.GLN) int { return cmp.Compare(a.Int64(), b.Int64()) })
	return slices.Compact(out)
}

// namesOf are the parties with the names of their sealed records, as far as these
// verify.
func (s *Server) namesOf(ctx context.Context, glns []meter.GLN) ([]openapi.SupplierName, error) {
	out := make([]openapi.SupplierName, len(glns)) // [] and not null
	if len(glns) == 0 {
		return out, nil
	}
	records, err := s.accesses.Suppliers(ctx, glns)
	if err != nil {
		return nil, err
	}
	for i, gln := range glns {
		out[i].Gln = gln.String()
		sealed, ok := records[gln]
		if !ok {
			continue
		}
		record, err := s.seals.Supplier(sealed)
		if err != nil || record.GLN() != gln {
			s.metrics.evidence.WithLabelValues("supplier").Inc()
			continue
		}
		name := record.Name()
		out[i].Name, out[i].Suspended = &name, record.Suspended()
	}
	return out, nil
}

// endOf is the first day after; nil while it lasts.
func endOf(d meter.DayRange) *openapi_types.Date {
	if d.To == meter.MaxDay {
		return nil
	}
	to := date(d.To)
	return &to
}

func (s *Server) renderConnection(f *authz.LegalFile, runs []StoredRun, names []openapi.SupplierName, now time.Time) openapi.Connection {
	out := openapi.Connection{
		Ean: f.EAN().String(), Commodity: openapi.Commodity(f.Commodity().String()), TimeZone: s.profile.Location().String(), At: now.UTC().Truncate(time.Second),
		LegalFileVersion: int(f.Version()), LegalFileSealedAt: f.SealedAt().UTC().Truncate(time.Second), Suppliers: names,
		Occupancies: []openapi.DayPeriod{}, OptOuts: []openapi.DayPeriod{}, Supply: []openapi.SupplyPeriod{}, Fields: []openapi.ConnectionField{}, // [] and not null
	}
	for _, o := range f.Occupancies() {
		out.Occupancies = append(out.Occupancies, openapi.DayPeriod{From: date(o.Days.From), To: endOf(o.Days)})
	}
	for _, d := range f.OptOuts() {
		out.OptOuts = append(out.OptOuts, openapi.DayPeriod{From: date(d.From), To: endOf(d)})
	}
	for _, p := range f.SupplyPeriods() {
		out.Supply = append(out.Supply, openapi.SupplyPeriod{Supplier: p.Supplier.String(), From: date(p.Days.From), To: endOf(p.Days)})
	}
	for _, r := range runs {
		field, _ := s.profile.FieldByCode(r.Field)
		out.Fields = append(out.Fields, openapi.ConnectionField{
			Field: field.Name, Obis: field.OBIS, Unit: field.Unit, Class: openapi.FieldClass(field.Class.String()),
			Resolution: openapi.Resolution(r.Resolution.String()), From: date(r.Days.From), To: date(r.Days.To), LastStoredAt: r.LastStored.UTC().Truncate(time.Second),
		})
	}
	return out
}
