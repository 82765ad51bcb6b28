package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
)

// Identities fetches sealed names and addresses, and has cryptoservers find and
// open them, for the employee whose token it is.
type Identities interface {
	// Sealed returns the newest sealed identity of each customer, in the order
	// asked for; nil for one that is not kept.
	Sealed(ctx context.Context, of []Customer) ([]*envelope.SealedIdentity, error)
	// AtAddress returns the metering points that have a blind index, or had it:
	// ascending, above after, at most limit. It is no evidence.
	AtAddress(ctx context.Context, blindIndex [32]byte, after meter.EAN, limit int) ([]meter.EAN, error)
	// BlindIndex is that of the address in the token's errand. It fails with
	// ErrNoCryptoserver or ErrTokenRefused as Opener.Open does, and with
	// authz.ErrNotPermitted.
	BlindIndex(ctx context.Context, token string, supplier []byte) ([32]byte, error)
	// Open returns one OpenedIdentity for each unit, in order. It fails with
	// ErrNoCryptoserver or ErrTokenRefused; what a cryptoserver refuses of one
	// metering point is in its Err.
	Open(ctx context.Context, r IdentityRequest) ([]OpenedIdentity, error)
}

// Customer is who lives at a metering point since a day, the first of an
// occupancy.
type Customer struct {
	EAN  meter.EAN
	From meter.Day
}

// IdentityRequest is what is to be opened for one employee.
type IdentityRequest struct {
	Token       string // the access token, as presented
	Supplier    []byte // sealed record
	Interaction [16]byte
	Units       []IdentityUnit
}

// IdentityUnit is one metering point with all evidence for it.
type IdentityUnit struct {
	EAN       meter.EAN
	LegalFile []byte // sealed
	Identity  envelope.SealedIdentity
}

// OpenedIdentity is what a cryptoserver tells of one metering point. Err is
// authz.ErrNotPermitted, ErrEvidenceRefused, ErrIdentityElsewhere (and not of
// today's customer), ErrIdentityDamaged, or ErrIdentityErased; then the rest is
// empty.
type OpenedIdentity struct {
	Person  meter.Person // without the name on an errand to find
	Receipt []byte       // verbatim
	Err     error
}

// What an identity can be instead of told.
var (
	ErrIdentityElsewhere = errors.New("the identity is at another address, or not of who lives there today")
	ErrIdentityDamaged   = errors.New("the identity does not open")
	ErrIdentityErased    = errors.New("the identity's data key was erased")
)

const (
	maxFound = 64
	// maxAtAddress bounds how many metering points are looked at for one
	// address. Of a tall building on one house number not all are told.
	maxAtAddress = 256
)

const (
	wantPostcode    = "must be a postcode of the market: capital letters and digits without blanks, as its profile says"
	wantHouseNumber = "must be a house number: 1 to 99999, as a string of digits, without its addition"
)

// addressQuery is the body of findMeteringPoints, understood.
type addressQuery struct {
	postcode meter.Postcode
	number   meter.HouseNumber
}

func (s *Server) parseAddress(b []byte) (addressQuery, paramErrors) {
	r := newBodyReader(b, "postcode", "houseNumber")
	var q addressQuery
	q.postcode, _ = member(r, "postcode", true, wantPostcode, s.profile.ParsePostcode)
	q.number, _ = member(r, "houseNumber", true, wantHouseNumber, meter.ParseHouseNumber)
	return q, r.errs
}

// checkFind for findMeteringPoints.
func checkFind(s *Server, r *http.Request) paramErrors {
	_, errs := s.parseAddress(callOf(r.Context()).body)
	return errs
}

// FindMeteringPoints answers POST /v1/metering-points/find.
func (s *Server) FindMeteringPoints(ctx context.Context, _ openapi.FindMeteringPointsRequestObject) (openapi.FindMeteringPointsResponseObject, error) {
	c := callOf(ctx)
	q, errs := s.parseAddress(c.body)
	if len(errs) > 0 {
		return nil, failParams(errs)
	}
	a, err := s.find(ctx, c, q)
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (b *body) VisitFindMeteringPointsResponse(w http.ResponseWriter) error { return b.write(w) }

// found is a metering point at the address, with its access record.
type found struct {
	record    audit.Record
	commodity meter.Commodity
	address   meter.Address
}

// find looks for what is at the address of the employee's errand. Each metering
// point that is told has a record of its own, so that its customer sees it; a
// search that tells nothing has one without.
func (s *Server) find(ctx context.Context, c *call, q addressQuery) (*body, error) {
	now := s.now()
	rec := s.newRecord(ctx, c.caller, now)
	rec.Operation, rec.Purpose, rec.Profile = audit.Find, meter.CustomerService, s.profile.Digest()
	postcode, number, err := authz.MayFind(c.caller, s.profile, now)
	if err != nil || postcode != q.postcode || number != q.number {
		return nil, s.refuseErrand(ctx, rec)
	}
	release, err := s.turn(ctx, c.caller.Supplier())
	if err != nil {
		return nil, err
	}
	defer release()
	all, more, err := s.atAddress(ctx, c, rec)
	if len(all) > 0 {
		// What was opened is recorded, whether or not it leaves.
		records := make([]audit.Record, len(all))
		for i := range all {
			if records[i] = all[i].record; err != nil {
				records[i].Outcome = audit.Failed
			}
		}
		release()
		if failed := s.recordAll(ctx, records); failed != nil {
			return nil, errors.Join(failed, err)
		}
		if err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, s.recordFailure(ctx, rec, err)
	} else {
		release()
		rec.Outcome = audit.NoRelation
		if err := s.record(ctx, rec); err != nil {
			return nil, err
		}
	}
	out := openapi.FoundPoints{InteractionId: eventOf(ctx).interaction, Found: []openapi.FoundPoint{}, More: more} // [] and not null
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.address.Addition, b.address.Addition), cmp.Compare(a.record.EAN.Int64(), b.record.EAN.Int64()))
	})
	for _, f := range all {
		out.Found = append(out.Found, openapi.FoundPoint{
			Ean: f.record.EAN.String(), Commodity: openapi.Commodity(f.commodity.String()), Address: renderAddress(f.address),
		})
	}
	rendered, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("rendering what was found: %w", err)
	}
	return c.rendered(rendered), nil
}

// recordAll commits the records of one interaction, all or none.
func (s *Server) recordAll(ctx context.Context, records []audit.Record) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	if err := s.many.Recorder.RecordMany(ctx, records); err != nil {
		return fail(recordNotWritten, fmt.Errorf("access records: %w", err))
	}
	return nil
}

// atAddress finds the metering points, and opens their addresses. It returns
// what was opened also when it fails half-way.
func (s *Server) atAddress(ctx context.Context, c *call, rec audit.Record) (all []found, more bool, err error) {
	asked, cancel := untilDeadline(ctx) // as open
	defer cancel()
	index, err := s.identities.BlindIndex(asked, c.token, c.supplier)
	if err != nil {
		return nil, false, s.identityFailure(err)
	}
	eans, err := s.identities.AtAddress(ctx, index, meter.EAN{}, maxAtAddress+1)
	if err != nil {
		return nil, false, fail(databaseUnavailable, fmt.Errorf("metering points at an address: %w", err))
	}
	if len(eans) > maxAtAddress {
		eans, more = eans[:maxAtAddress], true
	}
	for len(eans) > 0 && len(all) < maxFound {
		n := min(len(eans), maxFound-len(all))
		some, err := s.openAddresses(ctx, c, rec, eans[:n])
		if err != nil {
			return all, false, err
		}
		all, eans = append(all, some...), eans[n:]
	}
	return all, more || len(eans) > 0, nil
}

// openAddresses opens those of some candidates. Of one whose legal file does not
// verify, or whose identity does not open, nothing is told: the rest is.
func (s *Server) openAddresses(ctx context.Context, c *call, rec audit.Record, eans []meter.EAN) ([]found, error) {
	files, err := s.many.Facts.LegalFiles(ctx, eans)
	if err != nil {
		return nil, fail(databaseUnavailable, fmt.Errorf("legal files: %w", err))
	}
	var candidates []found
	var units []IdentityUnit
	var of []Customer
	for i, ean := range eans {
		file, err := s.legalFile(files[i], ean)
		if err != nil || file == nil {
			continue
		}
		g, err := authz.DecideIdentity(c.caller, file, s.profile, rec.At)
		if err != nil {
			continue
		}
		r := on(rec, file)
		r.EAN, r.Outcome = ean, audit.Given
		candidates = append(candidates, found{record: r, commodity: file.Commodity()})
		units = append(units, IdentityUnit{EAN: ean, LegalFile: files[i].Sealed})
		of = append(of, Customer{ean, g.Day()})
	}
	opened, err := s.openIdentities(ctx, c, units, of)
	if err != nil {
		return nil, err
	}
	var out []found
	for i, o := range opened {
		if o.Err != nil {
			continue
		}
		f := candidates[i]
		f.address, f.record.Receipt = o.Person.Address, o.Receipt
		out = append(out, f)
	}
	return out, nil
}

var errNotKept = errors.New("no identity is kept")

// openIdentities fetches sealed identities and has them opened, parallel to the
// units; the Err of one that is not kept is errNotKept.
func (s *Server) openIdentities(ctx context.Context, c *call, units []IdentityUnit, of []Customer) ([]OpenedIdentity, error) {
	rows, err := s.identities.Sealed(ctx, of)
	if err != nil {
		return nil, fail(databaseUnavailable, fmt.Errorf("identities: %w", err))
	}
	out := make([]OpenedIdentity, len(units))
	r := IdentityRequest{Token: c.token, Supplier: c.supplier, Interaction: eventOf(ctx).interaction}
	var at []int
	for i, row := range rows {
		if row == nil {
			out[i].Err = errNotKept
			continue
		}
		units[i].Identity = *row
		r.Units, at = append(r.Units, units[i]), append(at, i)
	}
	if len(at) == 0 {
		return out, nil
	}
	// As of readings: what is asked for takes place, and belongs into the log.
	asked, cancel := untilDeadline(ctx)
	defer cancel()
	opened, err := s.identities.Open(asked, r)
	if err != nil {
		return nil, s.identityFailure(err)
	}
	for i, o := range opened {
		if out[at[i]] = o; errors.Is(o.Err, ErrIdentityDamaged) {
			s.metrics.faults.WithLabelValues(faultDamaged).Inc()
		}
	}
	return out, nil
}

func (s *Server) identityFailure(err error) error {
	switch {
	case errors.Is(err, ErrTokenRefused):
		return &failure{kind: unauthenticated, challenge: `Bearer realm="kluis", error="invalid_token"`, cause: err}
	case errors.Is(err, authz.ErrNotPermitted):
		return fail(notPermitted, err)
	case errors.Is(err, ErrNoCryptoserver):
		return fail(decryptionUnavailable, err)
	}
	return fmt.Errorf("identities: %w", err)
}

// identity is who lives at a metering point today, for getConnection: whatever
// keeps it from being told is a state of its own, and the rest of the answer
// stands. The receipt belongs into the record, whose purpose it then has.
func (s *Server) identity(ctx context.Context, c *call, file *authz.LegalFile, sealed []byte) (openapi.ConnectionIdentity, []byte) {
	state := func(s openapi.ConnectionIdentityState) (openapi.ConnectionIdentity, []byte) {
		return openapi.ConnectionIdentity{State: s}, nil
	}
	g, err := authz.DecideIdentity(c.caller, file, s.profile, s.now())
	switch {
	case errors.Is(err, authz.ErrNoIdentity):
		return state(openapi.IdentityNone)
	case err != nil:
		return state(openapi.IdentityNotForRole)
	}
	opened, err := s.openIdentities(ctx, c, []IdentityUnit{{EAN: file.EAN(), LegalFile: sealed}}, []Customer{{file.EAN(), g.Day()}})
	if err != nil {
		eventOf(ctx).cause = err
		return state(openapi.IdentityUnavailable)
	}
	switch o := opened[0]; {
	case o.Err == nil:
		address, since := renderAddress(o.Person.Address), date(g.Day())
		return openapi.ConnectionIdentity{State: openapi.IdentityGiven, Name: &o.Person.Name, Address: &address, Since: &since}, o.Receipt
	case errors.Is(o.Err, errNotKept), errors.Is(o.Err, ErrIdentityErased), errors.Is(o.Err, ErrIdentityElsewhere):
		return state(openapi.IdentityNone)
	case errors.Is(o.Err, ErrIdentityDamaged):
		return state(openapi.IdentityDamaged)
	default: // its clock is on another day, its facts are older: another time it may agree
		eventOf(ctx).cause = o.Err
		return state(openapi.IdentityUnavailable)
	}
}

func renderAddress(a meter.Address) openapi.Address {
	out := openapi.Address{Street: a.Street, HouseNumber: a.HouseNumber.String(), Postcode: a.Postcode.String(), City: a.City}
	if a.Addition != "" {
		out.Addition = &a.Addition
	}
	return out
}
