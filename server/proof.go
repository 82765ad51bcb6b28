package server

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
)

// LogProofs proves single rows of the access log. Other errors than those named
// mean that the database did not serve.
type LogProofs interface {
	// Entry returns the row of an interaction; nil when the metering point has
	// none.
	Entry(ctx context.Context, ean meter.EAN, interaction [16]byte) (*LogRow, error)
	// Proof shows that a row is in the audit log, or fails with ErrNotLogged or
	// ErrLogAltered.
	Proof(ctx context.Context, ean meter.EAN, row *LogRow) (LogProof, error)
}

// LogProof shows that a row of the access log is in the audit log.
type LogProof struct {
	Origin     string
	Checkpoint []byte // signed head, verified
	Index      int64
	Size       int64
	SignedAt   time.Time
	Leaf       [32]byte
	Salt       []byte
	Hashes     [][]byte // from the leaf to the root
}

// The refusals of LogProofs.Proof.
var (
	// ErrNotLogged: the row is not in the audit log, or younger than its newest
	// signed head.
	ErrNotLogged = errors.New("not in the audit log yet")
	// ErrLogAltered: the row is not what was logged, or the tree not what was
	// signed.
	ErrLogAltered = errors.New("not what was logged")
)

// GetAccessProof answers GET /v1/metering-points/{ean}/access-log/{interaction}/proof.
func (s *Server) GetAccessProof(ctx context.Context, r openapi.GetAccessProofRequestObject) (openapi.GetAccessProofResponseObject, error) {
	ean, err := meter.ParseEAN(r.Ean)
	if err != nil {
		return nil, failParams(paramErrors{{Pointer: "/path/ean", Reason: wantEAN}})
	}
	q := logQuery{ean: ean, days: meter.DayRange{To: meter.MaxDay}}
	if r.Params.Occupancy != nil {
		if q.occupancy, err = meter.ParseDay(r.Params.Occupancy.String()); err != nil {
			return nil, failParams(paramErrors{{Pointer: "/query/occupancy", Reason: wantDay}})
		}
		q.chosen = true
	}
	b, err := s.accessProof(ctx, callOf(ctx), q, r.Interaction)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// accessProof proves one entry of a customer's access log. Up to the occupancy
// the steps are those of the log itself, and what that does not show this
// customer has no proof.
func (s *Server) accessProof(ctx context.Context, c *call, q logQuery, interaction uuid.UUID) (*body, error) {
	now := s.now()
	rec := s.newRecord(ctx, c.caller, now)
	rec.Operation, rec.EAN, rec.Profile = audit.AccessLog, q.ean, s.profile.Digest()
	if c.caller.Employee() == nil { // the contract's table says so too
		return nil, fail(notPermitted, errors.New("an access log is for employees"))
	}
	if err := s.onErrand(ctx, c, rec); err != nil {
		return nil, err
	}
	release, err := s.turn(ctx, c.caller.Supplier())
	if err != nil {
		return nil, err
	}
	defer release()
	sealed, err := s.facts.LegalFile(ctx, q.ean)
	if err != nil {
		return nil, fail(databaseUnavailable, fmt.Errorf("legal file: %w", err))
	}
	file, err := s.legalFile(sealed, q.ean)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fail(evidenceInvalid, err))
	}
	if file == nil {
		return nil, s.refuseNoRelation(ctx, rec, authz.ErrNoRelation)
	}
	rec = on(rec, file)
	occupancy, ok := occupancyOf(file, q, meter.DayOf(now, s.profile.Location()))
	if !ok {
		return nil, s.refuse(ctx, rec, audit.Refused, failParams(paramErrors{{Pointer: "/query/occupancy", Reason: wantOccupancy}}))
	}
	row, err := s.proofs.Entry(ctx, q.ean, interaction)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fail(databaseUnavailable, fmt.Errorf("access log: %w", err)))
	}
	v := &logView{profile: s.profile, file: file, asOf: now, occupancy: occupancy, query: q}
	shown, whole := false, false
	if row != nil {
		shown, whole = v.provable(row)
	}
	if !shown {
		return nil, s.refuse(ctx, rec, audit.Refused, fail(proofNotFound, errors.New("no such entry in this customer's log")))
	}
	p, err := s.proofs.Proof(ctx, q.ean, row)
	switch {
	case errors.Is(err, ErrNotLogged):
		return nil, s.refuse(ctx, rec, audit.Refused, fail(proofNotFound, err))
	case errors.Is(err, ErrLogAltered):
		s.metrics.evidence.WithLabelValues("access_record").Inc()
		s.log.LogAttrs(ctx, slog.LevelError, "access record is not what was logged", slog.String("interactionId", eventOf(ctx).interaction.String()), slog.String("record", interaction.String()))
		return nil, s.recordFailure(ctx, rec, fail(evidenceInvalid, err))
	case err != nil:
		return nil, s.recordFailure(ctx, rec, fail(databaseUnavailable, fmt.Errorf("audit log: %w", err)))
	}
	out := openapi.AccessProof{
		InteractionId: eventOf(ctx).interaction, Origin: p.Origin, Checkpoint: string(p.Checkpoint), Index: int(p.Index), Size: int(p.Size),
		SignedAt: p.SignedAt, Leaf: hex.EncodeToString(p.Leaf[:]), Hashes: p.Hashes, Whole: whole,
	}
	if out.Hashes == nil {
		out.Hashes = [][]byte{} // [] and not null
	}
	if whole {
		out.Salt, out.Record = &p.Salt, &row.Record
		if len(row.Receipt) > 0 {
			out.Receipt = &row.Receipt
		}
	}
	rendered, err := json.Marshal(out)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fmt.Errorf("rendering a proof: %w", err))
	}
	rec.Outcome, rec.Days = audit.Given, occupancy.Days
	release()
	if err := s.record(ctx, rec); err != nil {
		return nil, err
	}
	return c.rendered(rendered), nil
}

func (b *body) VisitGetAccessProofResponse(w http.ResponseWriter) error { return b.write(w) }

// provable says whether the customer's log shows a row, and whether the record
// as it was written tells the customer no more than the log does: it names no
// other customer's days, and what came of it is by this customer's own supply
// and consents.
func (v *logView) provable(row *LogRow) (shown, whole bool) {
	_, concerned, err := v.entry(row)
	if err != nil {
		// Each customer is shown its id; what it says is nobody's to tell.
		return true, false
	}
	if !concerned {
		return false, false
	}
	rec, err := audit.Parse(row.Record, row.Receipt)
	if err != nil {
		return true, false
	}
	if !rec.Days.Empty() && rec.Days.Intersect(v.occupancy.Days) != rec.Days {
		return true, false
	}
	granted, withheld := false, false
	for _, g := range rec.Granted {
		mine := g.Days.Intersect(meter.NewDaySet(v.occupancy.Days))
		if !mine.Equal(g.Days) {
			return true, false
		}
		granted = true
	}
	for _, h := range rec.Withheld {
		f, _ := v.profile.FieldByCode(h.Field)
		if !slices.Equal(v.ownReasons(&rec, f.Class, h), []authz.Withheld{h}) {
			return true, false
		}
		withheld = true
	}
	return true, v.outcome(&rec, granted, withheld) == rec.Outcome
}
