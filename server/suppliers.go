package server

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
)

// Register keeps the suppliers' records. An error means that the database did
// not serve, but where it says otherwise.
type Register interface {
	// Suppliers returns the newest record of every supplier, ascending by GLN.
	Suppliers(ctx context.Context) ([]StoredSupplier, error)
	// Supplier returns the newest record of one; nil when there is none.
	Supplier(ctx context.Context, gln meter.GLN) (*StoredSupplier, error)
	// Usage says what suppliers asked for since a time, as far as it is counted.
	Usage(ctx context.Context, glns []meter.GLN, since time.Time) (map[meter.GLN]Usage, error)
	// Store stores a new version of a record, which sealed is of, and the access
	// record, both or none of them. It fails with ErrConflict when one of them is
	// there already, and nothing was stored; after any other error they may have
	// been stored or not.
	Store(ctx context.Context, s *authz.Supplier, sealed []byte, r audit.Record) error
}

// StoredSupplier is the newest row of a supplier's record.
type StoredSupplier struct {
	GLN     meter.GLN
	Version uint64 // of the row
	Sealed  []byte
}

// Usage is what a supplier asked for.
type Usage struct {
	Requests, Given, Refused, Failed int64
	LastAt                           time.Time // of the newest request, however old; zero: none is known
}

// SupplierStepRequest is a suspension of a supplier, or its end, with all
// evidence for it.
type SupplierStepRequest struct {
	Token    string // the employee's access token, as presented
	Operator []byte // sealed record of the token's client
	Previous []byte // sealed record of the supplier
	Suspend  bool   // else resume
}

const (
	wantSupplierTag = "must be the version of the supplier's record as you know it, in quotes"
	ownRecord       = "The grid operator's own record is changed by the registrar only."
	sealLater       = "No cryptoserver can seal the step now, and nothing was stored: try again after the time in Retry-After."
)

// supplierTag is the entity tag of a version of a supplier's record.
func supplierTag(version uint64) string { return `"` + strconv.FormatUint(version, 10) + `"` }

// checkSupplierStep for suspendSupplier and resumeSupplier.
func checkSupplierStep(_ *Server, r *http.Request) paramErrors {
	var errs paramErrors
	if _, err := meter.ParseGLN(chi.URLParam(r, "gln")); err != nil {
		errs.add("/path/gln", wantGLN)
	}
	if tag := r.Header.Get("If-Match"); tag != "" {
		if _, err := parseIfMatch(tag); err != nil {
			errs.add("/header/If-Match", wantSupplierTag)
		}
	}
	return errs
}

// rate is a supplier's quota, whether it asked for anything yet or not.
func (l *limiter) rate(g meter.GLN) Rate {
	if r, own := l.limits.Rates[g]; own {
		return r
	}
	return l.limits.Rate
}

// oversee is the record of an employee who looks at the whole.
func (s *Server) oversee(ctx context.Context, c *call) audit.Record {
	rec := s.newRecord(ctx, c.caller, s.now())
	rec.Operation, rec.Outcome = audit.Oversee, audit.Given
	return rec
}

// usage says what suppliers asked for since their local day began.
func (s *Server) usage(ctx context.Context, glns []meter.GLN) (map[meter.GLN]Usage, error) {
	loc := s.profile.Location()
	used, err := s.register.Usage(ctx, glns, meter.DayOf(s.now(), loc).Start(loc))
	if err != nil {
		return nil, fail(databaseUnavailable, fmt.Errorf("usage: %w", err))
	}
	return used, nil
}

// ListSuppliers answers GET /v1/suppliers.
func (s *Server) ListSuppliers(ctx context.Context, _ openapi.ListSuppliersRequestObject) (openapi.ListSuppliersResponseObject, error) {
	c, ev := callOf(ctx), eventOf(ctx)
	rec := s.oversee(ctx, c)
	stored, err := s.register.Suppliers(ctx)
	if err != nil {
		return nil, fail(databaseUnavailable, fmt.Errorf("suppliers: %w", err))
	}
	glns := make([]meter.GLN, len(stored))
	for i := range stored {
		glns[i] = stored[i].GLN
	}
	used, err := s.usage(ctx, glns)
	if err != nil {
		return nil, err
	}
	out := openapi.Suppliers{InteractionId: ev.interaction, At: rec.At.Truncate(time.Second), Suppliers: []openapi.Supplier{}}
	for i := range stored {
		r, err := s.supplierRecord(&stored[i])
		if err != nil { // one that was meddled with does not hide the others
			s.log.WarnContext(ctx, "a supplier's record does not verify", "supplier", glns[i].String(), "error", err.Error())
			out.Suppliers = append(out.Suppliers, s.renderDamaged(&stored[i], used[glns[i]]))
			continue
		}
		out.Suppliers = append(out.Suppliers, s.renderSupplier(r, used[glns[i]]))
	}
	return s.overseen(ctx, rec, out)
}

// overseen records what an employee is shown, and renders it.
func (s *Server) overseen(ctx context.Context, rec audit.Record, shown any) (*body, error) {
	rendered, err := json.Marshal(shown)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fmt.Errorf("rendering: %w", err))
	}
	if err := s.record(ctx, rec); err != nil {
		return nil, err
	}
	return callOf(ctx).rendered(rendered), nil
}

func (b *body) VisitListSuppliersResponse(w http.ResponseWriter) error { return b.write(w) }

// supplierRecord verifies a stored record: the one that its row says, by a seal.
func (s *Server) supplierRecord(stored *StoredSupplier) (*authz.Supplier, error) {
	r, err := s.seals.Supplier(stored.Sealed)
	if err == nil && (r.GLN() != stored.GLN || r.Version() != stored.Version) {
		err = errors.New("it is of another supplier or version than its row says")
	}
	if err != nil {
		s.metrics.evidence.WithLabelValues("supplier").Inc()
		return nil, fail(evidenceInvalid, fmt.Errorf("supplier record: %w", err))
	}
	return r, nil
}

// renderDamaged tells of a record that does not verify nothing but that.
func (s *Server) renderDamaged(stored *StoredSupplier, used Usage) openapi.Supplier {
	damaged := true
	out := s.renderUsage(stored.GLN, stored.Version, used)
	out.Damaged = &damaged
	return out
}

// renderUsage is a supplier without the facts of its record.
func (s *Server) renderUsage(gln meter.GLN, version uint64, used Usage) openapi.Supplier {
	rate := s.limits.rate(gln)
	out := openapi.Supplier{
		Gln: gln.String(), Version: int(version), Scopes: []string{}, Certificates: []openapi.SupplierCertificate{},
		Quota: openapi.SupplierQuota{PerSecond: float32(rate.PerSecond), Burst: rate.Burst},
		Today: openapi.SupplierToday{Requests: int(used.Requests), Given: int(used.Given), Refused: int(used.Refused), Failed: int(used.Failed)},
	}
	if !used.LastAt.IsZero() {
		at := used.LastAt.UTC().Truncate(time.Second)
		out.LastRequestAt = &at
	}
	return out
}

func (s *Server) renderSupplier(r *authz.Supplier, used Usage) openapi.Supplier {
	out := s.renderUsage(r.GLN(), r.Version(), used)
	out.Name, out.Suspended, out.Scopes = r.Name(), r.Suspended(), append(out.Scopes, r.Scopes()...)
	for _, k := range r.Certificates() {
		w := openapi.SupplierCertificate{Thumbprint: hex.EncodeToString(k.Thumbprint[:]), NotAfter: k.NotAfter.Truncate(time.Second)}
		if !k.RevokedAt.IsZero() {
			at := k.RevokedAt.Truncate(time.Second)
			w.RevokedAt = &at
		}
		out.Certificates = append(out.Certificates, w)
	}
	return out
}

// SuspendSupplier answers POST /v1/suppliers/{gln}/suspend.
func (s *Server) SuspendSupplier(ctx context.Context, r openapi.SuspendSupplierRequestObject) (openapi.SuspendSupplierResponseObject, error) {
	a, err := s.takeSupplierStep(ctx, r.Gln, true, r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// ResumeSupplier answers POST /v1/suppliers/{gln}/resume.
func (s *Server) ResumeSupplier(ctx context.Context, r openapi.ResumeSupplierRequestObject) (openapi.ResumeSupplierResponseObject, error) {
	a, err := s.takeSupplierStep(ctx, r.Gln, false, r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// supplierAnswer is one supplier, with the header that names its version.
type supplierAnswer struct {
	body
	tag string
}

func (a *supplierAnswer) respond(w http.ResponseWriter) error {
	w.Header().Set("ETag", a.tag)
	return a.writeStatus(w, http.StatusOK)
}

func (a *supplierAnswer) VisitSuspendSupplierResponse(w http.ResponseWriter) error {
	return a.respond(w)
}

func (a *supplierAnswer) VisitResumeSupplierResponse(w http.ResponseWriter) error {
	return a.respond(w)
}

// switching is a suspension, or its end, that an employee asks for.
type switching struct {
	gln     meter.GLN
	suspend bool
	tags    entityTags // that the record's version must be one of
}

// takeSupplierStep takes the step from the supplier's record to the committed
// new version, with its access record in the same transaction.
func (s *Server) takeSupplierStep(ctx context.Context, gln string, suspend bool, ifMatch *string) (*supplierAnswer, error) {
	c := callOf(ctx)
	a := switching{suspend: suspend}
	var errs paramErrors
	var err error
	if a.gln, err = meter.ParseGLN(gln); err != nil {
		errs.add("/path/gln", wantGLN)
	}
	if ifMatch != nil {
		if a.tags, err = parseIfMatch(*ifMatch); err != nil {
			errs.add("/header/If-Match", wantSupplierTag)
		}
	}
	switch {
	case len(errs) > 0:
		return nil, failParams(errs)
	case ifMatch == nil:
		return nil, fail(preconditionRequired, nil)
	}
	rec := s.newRecord(ctx, c.caller, s.now())
	rec.Operation, rec.Target, rec.Suspend = audit.SupplierStep, a.gln, suspend
	if e := c.caller.Employee(); e == nil || !e.Errand.OfSupplier(a.gln, suspend) {
		return nil, s.refuse(ctx, rec, audit.Refused, fail(notPermitted, errors.New("not the step that the employee's token was issued for")))
	}
	for range stepTries {
		var answer *supplierAnswer
		if answer, err = s.trySupplierStep(ctx, c, a, rec); !errors.Is(err, errStartOver) {
			return answer, err
		}
	}
	if errors.Is(err, ErrEvidenceRefused) { // of what is stored, time and again
		s.metrics.evidence.WithLabelValues("supplier").Inc()
		return nil, s.recordFailure(ctx, rec, fail(evidenceInvalid, err))
	}
	return nil, s.recordFailure(ctx, rec, fail(databaseUnavailable, err))
}

// trySupplierStep takes it on the record as it is now. errStartOver: nothing was
// stored, nor recorded.
func (s *Server) trySupplierStep(ctx context.Context, c *call, a switching, rec audit.Record) (*supplierAnswer, error) {
	stored, err := s.register.Supplier(ctx, a.gln)
	if err != nil {
		return nil, fail(databaseUnavailable, fmt.Errorf("supplier: %w", err))
	}
	rec.At = s.now().UTC().Truncate(time.Microsecond)
	if stored == nil {
		return nil, s.refuse(ctx, rec, audit.NoRelation, fail(supplierNotFound, nil))
	}
	previous, err := s.supplierRecord(stored)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, err)
	}
	// Before anything is changed, so that what was done is also told.
	used, err := s.usage(ctx, []meter.GLN{a.gln})
	if err != nil {
		return nil, err
	}
	switch {
	case a.gln == c.caller.Supplier():
		return nil, s.refuse(ctx, rec, audit.Refused, &failure{kind: notPermitted, detail: ownRecord})
	case previous.Suspended() == a.suspend:
		// Also when the answer to the step did not arrive, and it is sent again.
		answer, err := s.supplierAnswer(ctx, previous, used[a.gln])
		if err != nil {
			return nil, s.recordFailure(ctx, rec, err)
		}
		if err := s.record(ctx, switched(rec, previous)); err != nil {
			return nil, err
		}
		return answer, nil
	case !a.tags.match(supplierTag(previous.Version())):
		return nil, s.refuse(ctx, rec, audit.Refused, fail(preconditionFailed, nil))
	}
	actor, err := authz.PermitSuspend(c.caller, previous, a.suspend, c.caller.IssuedAt())
	if err != nil {
		return nil, s.refuse(ctx, rec, audit.Refused, refusedStep(err, err.Error()))
	}
	sealed, err := s.sealSupplier(ctx, c, stored.Sealed, a.suspend)
	switch {
	case errors.Is(err, errStartOver):
		return nil, err
	case errors.Is(err, authz.ErrNotPermitted):
		return nil, s.refuse(ctx, rec, audit.Refused, refusedStep(err, "")) // by its clock, which is another
	case err != nil:
		return nil, s.recordFailure(ctx, rec, err)
	}
	next, err := s.verifySupplierStep(sealed, previous, a.suspend, actor)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, err)
	}
	answer, err := s.supplierAnswer(ctx, next, used[a.gln])
	if err != nil {
		return nil, s.recordFailure(ctx, rec, err)
	}
	err = s.storeSupplier(ctx, next, sealed, switched(rec, next))
	switch {
	case errors.Is(err, ErrConflict):
		return nil, fmt.Errorf("%w: %w", errStartOver, err)
	case err != nil:
		// It is stored, or not; if it is, so is its record, and this one is one too
		// many, which the log does not take.
		return nil, s.recordFailure(ctx, rec, fail(databaseUnavailable, fmt.Errorf("step: %w", err)))
	}
	return answer, nil
}

// switched is the record of a step that was taken, or had been.
func switched(rec audit.Record, s *authz.Supplier) audit.Record {
	rec.Outcome, rec.TargetVersion, rec.TargetDigest = audit.Given, s.Version(), s.Digest()
	return rec
}

func (s *Server) supplierAnswer(ctx context.Context, r *authz.Supplier, used Usage) (*supplierAnswer, error) {
	rendered, err := json.Marshal(openapi.SupplierAnswer{InteractionId: eventOf(ctx).interaction, Supplier: s.renderSupplier(r, used)})
	if err != nil {
		return nil, fmt.Errorf("rendering a supplier: %w", err)
	}
	return &supplierAnswer{body{bytes: append(rendered, '\n')}, supplierTag(r.Version())}, nil
}

// sealSupplier has a cryptoserver sign the next version. A caller that goes away
// does not stop it half-way. The deadline holds.
func (s *Server) sealSupplier(ctx context.Context, c *call, previous []byte, suspend bool) ([]byte, error) {
	asked, cancel := untilDeadline(ctx)
	defer cancel()
	sealed, err := s.sealer.TakeSupplierStep(asked, SupplierStepRequest{Token: c.token, Operator: c.supplier, Previous: previous, Suspend: suspend})
	switch {
	case err == nil:
		return sealed, nil
	case errors.Is(err, ErrTokenRefused):
		return nil, &failure{kind: unauthenticated, challenge: `Bearer realm="kluis", error="invalid_token"`, cause: err}
	case errors.Is(err, ErrEvidenceRefused), errors.Is(err, authz.ErrStep):
		// Most likely there is a later version, stored since this one was read.
		return nil, fmt.Errorf("%w: %w", errStartOver, err)
	case errors.Is(err, ErrNoCryptoserver):
		return nil, &failure{kind: sealingUnavailable, detail: sealLater, cause: err}
	}
	return nil, fmt.Errorf("take a step of a supplier: %w", err)
}

// verifySupplierStep verifies what a cryptoserver sealed: this very step, by this
// actor, and nothing else; and not by a clock that is ahead.
func (s *Server) verifySupplierStep(sealed []byte, previous *authz.Supplier, suspend bool, actor authz.Actor) (*authz.Supplier, error) {
	next, err := s.seals.Supplier(sealed)
	if err != nil {
		s.metrics.evidence.WithLabelValues("supplier").Inc()
		return nil, fail(evidenceInvalid, fmt.Errorf("sealed step: %w", err))
	}
	want, err := authz.Suspend(previous, suspend, actor, next.SealedAt())
	if err != nil || want.Digest() != next.Digest() {
		return nil, fail(evidenceInvalid, errors.New("sealed step: another step was sealed than was asked for"))
	}
	if err := authz.CheckSealedAt(next.SealedAt(), s.now()); err != nil {
		return nil, &failure{kind: sealingUnavailable, detail: sealLater, cause: fmt.Errorf("sealed step, not stored: %w", err)}
	}
	return next, nil
}

// storeSupplier commits a step, whatever becomes of the client and the deadline.
func (s *Server) storeSupplier(ctx context.Context, next *authz.Supplier, sealed []byte, r audit.Record) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	return s.register.Store(ctx, next, sealed, r)
}
