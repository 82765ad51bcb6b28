package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/internal/authn"
	"kluis/meter"
	"kluis/openapi"
)

// recordTimeout bounds the commit of an access record. It does not count
// against the request's deadline, nor end with the client: once something was
// opened, the record must be written.
const recordTimeout = 5 * time.Second

// sendTurn is for how long an answer that is being sent keeps its turn at most. To
// make and to encrypt a year of quarter-hours takes a CPU as long as some back
// ends do; who reads slowly is not waited for.
const sendTurn = 5 * time.Millisecond

// GetReadings answers GET /v1/metering-points/{ean}/readings.
func (s *Server) GetReadings(ctx context.Context, r openapi.GetReadingsRequestObject) (openapi.GetReadingsResponseObject, error) {
	q, errs := boundReadingsParams(r).parse(s.profile, s.now())
	if len(errs) > 0 {
		return nil, failParams(errs)
	}
	c := callOf(ctx)
	leave, err := s.limits.takeRoom(ctx, c.caller.Supplier(), s.longest(c, q))
	if err != nil {
		return nil, err
	}
	c.atEnd(leave) // once it is sent: who reads slowly has little to read at once
	release, err := s.turn(ctx, c.caller.Supplier())
	if err != nil {
		return nil, err
	}
	c.atEnd(release)
	a, err := s.readings(ctx, c, q)
	if err != nil {
		return nil, err
	}
	s.metrics.age.Observe(time.Since(eventOf(ctx).evidence).Seconds())
	b := newBody(a, c)
	time.AfterFunc(sendTurn, release)
	return b, nil
}

// longest is about what the answer to a query takes at most, in bytes, with what
// it is made of.
func (s *Server) longest(c *call, q query) int64 {
	value := int64(40)
	if c.media != mediaJSON {
		value = 200
	}
	var most int64
	for _, commodity := range []meter.Commodity{meter.Electricity, meter.Gas} {
		n := int64(0)
		for _, code := range q.request(commodity, s.profile).Fields {
			f, ok := s.profile.FieldByCode(code)
			if ok && f.Class == meter.Intervals && q.resolution < meter.P1D {
				n += 96
			} else {
				n++
			}
		}
		most = max(most, n)
	}
	return int64(q.days.Len()) * most * value
}

// readings takes a request from the legal file to the committed record. The
// steps, and what each touches, are the same for an unknown metering point
// and for one the caller has nothing to do with.
func (s *Server) readings(ctx context.Context, c *call, q query) (*answer, error) {
	ev := eventOf(ctx)
	if e := c.caller.Employee(); e != nil && len(q.fields) == 0 && q.class == 0 {
		q.fields = e.Errand.Fields // all that the errand is for
	}
	rec := s.readingsRecord(ctx, c.caller, q, s.now())
	if err := s.onErrand(ctx, c, rec); err != nil {
		return nil, err
	}
	ev.evidence = time.Now() // before the statement: no revocation after this is missed by more
	stored, err := s.facts.LegalFile(ctx, q.ean)
	if err != nil {
		return nil, fail(databaseUnavailable, fmt.Errorf("legal file: %w", err))
	}
	now := s.now()
	rec.At = now.UTC().Truncate(time.Microsecond)
	file, err := s.legalFile(stored, q.ean)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fail(evidenceInvalid, err))
	}
	request := q.request(commodityOf(file), s.profile)
	if e := c.caller.Employee(); e != nil && !reads(&e.Errand, request) {
		return nil, s.refuseErrand(ctx, rec)
	}
	grant, withheld, err := authz.Decide(c.caller, request, file, s.profile, now)
	if err != nil {
		return nil, s.refuseNoRelation(ctx, rec, err)
	}
	decided(&rec, request, file, grant, withheld)

	a := &answer{interaction: ev.interaction, query: q, profile: s.profile, withheld: withheld}
	if !grant.Empty() {
		keys, blocks, err := s.rows.Blocks(ctx, grant, q.asOf)
		if err != nil {
			return nil, s.recordFailure(ctx, rec, fail(databaseUnavailable, fmt.Errorf("blocks: %w", err)))
		}
		tag := s.readingsTag(c, request, q.asOf, grant, withheld, keys, blocks)
		if c.knows(tag) {
			rec.Outcome = audit.Unchanged
			if err := s.record(ctx, rec); err != nil {
				return nil, err
			}
			a.tag, a.unchanged = tag, true
			return a, nil
		}
		opened, err := s.open(ctx, c, stored.Sealed, request, keys, blocks)
		rec.Receipt = opened.Receipt
		switch {
		case errors.Is(err, authz.ErrNoRelation):
			// The file given to both says so now and did not before: only a
			// cryptoserver of another mind can cause it. Its word counts.
			rec = withoutDecision(rec, q.fields)
			return nil, s.refuseNoRelation(ctx, rec, err)
		case err != nil:
			return nil, s.recordFailure(ctx, rec, err)
		}
		a.series, a.withheld = reconcile(opened, withheld)
		rec.Withheld = a.withheld
		// A tag stands for what will come of the same again: not where a block
		// did not open, or the cryptoserver was of another mind.
		if opened.Damaged == 0 && opened.Outside == 0 && slices.Equal(a.withheld, withheld) {
			a.tag = tag
		}
	}
	rec.Outcome = outcome(grant, a.withheld)
	if err := s.record(ctx, rec); err != nil {
		a.erase()
		return nil, err
	}
	return a, nil
}

// commodityOf is what a metering point meters. What stands in for that of an
// unknown one is never seen: Decide knows no relation to it, whatever the fields.
func commodityOf(file *authz.LegalFile) meter.Commodity {
	if file == nil {
		return meter.Electricity
	}
	return file.Commodity()
}

// reads says whether an errand is for all that is asked for.
func reads(e *authz.Errand, r authz.Request) bool {
	return !slices.ContainsFunc(r.Fields, func(f meter.FieldCode) bool { return !slices.Contains(e.Fields, f) }) &&
		r.Days.Intersect(e.Days) == r.Days
}

// legalFile verifies the newest legal file of a metering point. None stored is
// nil.
func (s *Server) legalFile(f authz.StoredFile, ean meter.EAN) (*authz.LegalFile, error) {
	return s.genuine(s.seals.StoredFile(f, ean))
}

// listedFile does so in a list, where the version before was not asked for.
func (s *Server) listedFile(f authz.StoredFile, ean meter.EAN) (*authz.LegalFile, error) {
	return s.genuine(s.seals.ListedFile(f, ean))
}

func (s *Server) genuine(file *authz.LegalFile, err error) (*authz.LegalFile, error) {
	if err != nil {
		s.metrics.evidence.WithLabelValues("legal_file").Inc()
		return nil, fmt.Errorf("legal file: %w", err)
	}
	return file, nil
}

// open has the granted rows opened.
func (s *Server) open(ctx context.Context, c *call, file []byte, r authz.Request, keys []envelope.KeyRecord, blocks []envelope.SealedBlock) (Opened, error) {
	// Once it was asked for, decryption takes place, and its receipt belongs
	// into the access log: a caller that goes away must not tear a hole into
	// the chain of receipts. The deadline still holds.
	asked, cancel := untilDeadline(ctx)
	defer cancel()
	opened, err := s.opener.Open(asked, OpenRequest{
		Token: c.token, Supplier: c.supplier, LegalFile: file, Interaction: eventOf(ctx).interaction,
		Request: r, Keys: keys, Blocks: blocks,
	})
	s.countFaults(&opened)
	switch {
	case err == nil, errors.Is(err, authz.ErrNoRelation):
		return opened, err
	case errors.Is(err, ErrTokenRefused):
		// It expired on the way, or the supplier record changed.
		return opened, &failure{kind: unauthenticated, challenge: `Bearer realm="kluis", error="invalid_token"`, cause: err}
	case errors.Is(err, ErrEvidenceRefused):
		s.metrics.evidence.WithLabelValues("legal_file").Inc()
		return opened, fail(evidenceInvalid, err)
	case errors.Is(err, ErrNoCryptoserver):
		return opened, fail(decryptionUnavailable, err)
	}
	return opened, fmt.Errorf("open: %w", err)
}

// countFaults counts the blocks that did not open.
func (s *Server) countFaults(o *Opened) {
	s.metrics.faults.WithLabelValues(faultOutside).Add(float64(o.Outside))
	s.metrics.faults.WithLabelValues(faultDamaged).Add(float64(o.Damaged))
}

// untilDeadline is a context that ends with the deadline of ctx, but not with
// the client.
func untilDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if d, ok := ctx.Deadline(); ok {
		return context.WithDeadline(context.WithoutCancel(ctx), d)
	}
	return context.WithCancel(context.WithoutCancel(ctx))
}

func (s *Server) newRecord(ctx context.Context, c authn.Caller, now time.Time) audit.Record {
	r := audit.Record{
		InteractionID: eventOf(ctx).interaction,
		At:            now.UTC().Truncate(time.Microsecond),
		Supplier:      c.Supplier(),
		TokenID:       c.TokenID(),
		Certificate:   c.Thumbprint(),
	}
	if e := c.Employee(); e != nil {
		r.Employee, r.Reason = e.Subject, e.Errand.Reason
	}
	return r
}

// readingsRecord is the record of a request for readings of one metering point,
// by itself or among many, before anything is decided.
func (s *Server) readingsRecord(ctx context.Context, c authn.Caller, q query, now time.Time) audit.Record {
	r := s.newRecord(ctx, c, now)
	r.Operation = audit.Readings
	r.EAN, r.Purpose, r.Days, r.Fields = q.ean, q.purpose, q.days, q.fields
	r.Resolution, r.Kind, r.AsOf, r.Profile = q.resolution, q.kind, q.asOf, s.profile.Digest()
	return r
}

// decided notes a decision, and what it was made on.
func decided(r *audit.Record, request authz.Request, file *authz.LegalFile, grant authz.Grant, withheld []authz.Withheld) {
	r.Fields = request.Fields
	r.LegalFile, r.FileVersion = file.Digest(), file.Version()
	r.Granted, r.Withheld = audit.GrantedItems(grant), withheld
}

// record commits an access record, or fails with record-not-written.
func (s *Server) record(ctx context.Context, r audit.Record) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	if err := s.recorder.Record(ctx, r); err != nil {
		return fail(recordNotWritten, fmt.Errorf("access record: %w", err))
	}
	return nil
}

// recordFailure commits the record of a request that fails, and returns the
// failure. That the record could not be written either is told in the log.
func (s *Server) recordFailure(ctx context.Context, r audit.Record, cause error) error {
	r.Outcome = audit.Failed
	if err := s.record(ctx, r); err != nil {
		f := asFailure(ctx, cause)
		return &failure{kind: f.kind, challenge: f.challenge, cause: errors.Join(f.cause, err)}
	}
	return cause
}

func (s *Server) refuseNoRelation(ctx context.Context, r audit.Record, cause error) error {
	r.Outcome = audit.NoRelation
	if err := s.record(ctx, r); err != nil {
		return err
	}
	return fail(meteringPointNotFound, cause)
}

// withoutDecision is the record of a metering point that nothing may be said
// of; the fields are those named, as for any without relation.
func withoutDecision(r audit.Record, named []meter.FieldCode) audit.Record {
	r.Fields, r.LegalFile, r.FileVersion = named, [32]byte{}, 0
	r.Granted, r.Withheld, r.Receipt = nil, nil, nil
	return r
}

func outcome(g authz.Grant, withheld []authz.Withheld) audit.Outcome {
	switch {
	case len(withheld) == 0:
		return audit.Given
	case g.Empty():
		return audit.Withheld
	}
	return audit.Partly
}

// newBody renders the answer in a media type and erases it. The body is erased
// once sent.
func newBody(a *answer, c *call) *body {
	b := &body{media: c.media, packed: c.packed, secret: true}
	if a.tag != "" {
		b.etag = "W/" + a.tag
	}
	if b.unchanged = a.unchanged; b.unchanged {
		return b
	}
	switch c.media {
	case mediaCSV:
		b.bytes = append(make([]byte, 0, len(csvHeader)+a.csvSize()), csvHeader...)
		b.bytes = a.appendCSV(b.bytes)
	case mediaAtom:
		b.bytes = a.appendESPI(make([]byte, 0, a.espiSize()))
	default:
		b.bytes = a.appendTo(make([]byte, 0, a.size()))
	}
	a.erase()
	b.pack()
	return b
}

// body is a rendered answer.
type body struct {
	bytes  []byte
	media  string // "": JSON
	secret bool
	packed bool   // its reader takes gzip
	gzip   bool   // it is
	etag   string // "": none
	// unchanged: the reader has it already, as the tag says; it is not sent.
	unchanged bool
}

// pack packs what is worth it, once.
func (b *body) pack() {
	if !b.packed || b.gzip || len(b.bytes) <= packAbove {
		return
	}
	packed := pack(b.bytes)
	if b.secret {
		clear(b.bytes)
	}
	b.bytes, b.gzip = packed, true
}

func (b *body) write(w http.ResponseWriter) error { return b.writeStatus(w, http.StatusOK) }

func (b *body) writeStatus(w http.ResponseWriter, status int) error {
	h := w.Header()
	if b.etag != "" {
		h.Set("ETag", b.etag)
	}
	if b.unchanged {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	b.pack()
	if b.gzip {
		h.Set("Content-Encoding", "gzip")
	}
	h.Set("Content-Type", contentTypes[cmp.Or(b.media, mediaJSON)])
	h.Set("Content-Length", strconv.Itoa(len(b.bytes)))
	w.WriteHeader(status)
	_, err := w.Write(b.bytes)
	if b.secret {
		clear(b.bytes)
	}
	return err
}

func (b *body) VisitGetReadingsResponse(w http.ResponseWriter) error { return b.write(w) }
