package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/internal/authn"
	"kluis/meter"
)

const (
	// firstBatch is how many metering points are dealt with together at first,
	// so that something leaves soon; each batch has growth times as many as the
	// one before, up to maxBatch.
	firstBatch = 8
	growth     = 4
	maxBatch   = 256
	// maxBatchDays bounds a batch in stored days that may be read, over all
	// fields, and maxBatchIntervals in those of intervals, which have a hundred
	// values each: two batches of a stream are in memory at once.
	maxBatchDays      = 18000
	maxBatchIntervals = 3200
	// maxOpenBytes bounds what is sent to a cryptoserver in one call: below the
	// 16 MB that it takes.
	maxOpenBytes = 12 << 20
	maxOpenKeys  = 3500
	// evidenceAge is how old facts may be when what was decided on them leaves,
	// without their being looked at again.
	evidenceAge = time.Second
)

// querying is one request of queryReadings under way.
type querying struct {
	s     *Server
	c     *call
	ev    *event
	asked *manyQuery
	of    cursorsOf
	place place
	// cost is what a metering point may cost at most: stored days, over all
	// fields, and those of intervals.
	days, intervals int
}

func (s *Server) newQuerying(ctx context.Context, c *call) (*querying, error) {
	q := &querying{s: s, c: c, ev: eventOf(ctx), asked: c.asked}
	var err error
	if q.of, err = s.placesOf(c); err != nil {
		return nil, err
	}
	if q.place, err = s.openPlace(c); err != nil {
		return nil, failParams(paramErrors{{Pointer: "/body/cursor", Reason: cursorFault(err)}})
	}
	if c.asked.cursor != "" {
		q.place.parts++
	}
	for _, commodity := range []meter.Commodity{meter.Electricity, meter.Gas} {
		fields := q.asked.request(commodity, s.profile).Fields
		days := q.asked.days.Len() + 1 // a closing read
		intervals := 0
		for _, code := range fields {
			if f, _ := s.profile.FieldByCode(code); f.Class == meter.Intervals {
				intervals += days
			}
		}
		q.days, q.intervals = max(q.days, days*len(fields)), max(q.intervals, intervals)
	}
	return q, nil
}

// size is how many metering points the batch after one of n has.
func (q *querying) size(n, most int) int {
	if n *= growth; n == 0 {
		n = firstBatch
	}
	n = min(n, most, maxBatchDays/max(q.days, 1))
	if q.intervals > 0 {
		n = min(n, maxBatchIntervals/q.intervals)
	}
	return max(n, 1)
}

// batch is metering points that were decided, opened and recorded together.
type batch struct {
	supplier []byte    // sealed record
	evidence time.Time // when the facts were read: no change after this was missed
	points   []*queryPoint
	leftOut  uint32    // after the last of the points
	through  meter.EAN // the last metering point dealt with
	last     bool      // nothing comes after it
}

// queryPoint is what came of one metering point.
type queryPoint struct {
	ean     meter.EAN
	version uint64 // of the newest row of its legal file
	leftOut uint32 // how many between the one before and this one
	answer  answer
	problem *failure

	// Until it is recorded.
	file    []byte // sealed
	request authz.Request
	grant   authz.Grant
	record  audit.Record
}

// erase forgets the readings of the batch.
func (b *batch) erase() {
	for _, p := range b.points {
		p.answer.erase()
	}
}

// next decides on the next n metering points after a place: the first half of a
// batch. The facts are read anew, those about the caller too.
func (q *querying) next(ctx context.Context, after meter.EAN, n int) (*batch, error) {
	b := &batch{}
	caller, err := q.admit(ctx, b)
	if err != nil {
		return nil, err
	}
	candidates, err := q.candidates(ctx, b, after, n)
	if err != nil {
		return nil, err
	}
	now := q.s.now()
	for _, k := range candidates {
		b.through = k.EAN
		p := q.decide(caller, k, now)
		if p == nil {
			b.leftOut++
			continue
		}
		p.leftOut, b.leftOut = b.leftOut, 0
		b.points = append(b.points, p)
	}
	return b, nil
}

// admit is the caller as its record is now.
func (q *querying) admit(ctx context.Context, b *batch) (authn.Caller, error) {
	var err error
	b.evidence = time.Now() // before the statements
	if b.supplier, err = q.s.facts.Supplier(ctx, q.c.caller.Supplier()); err != nil {
		return authn.Caller{}, fail(databaseUnavailable, fmt.Errorf("supplier record: %w", err))
	}
	var record *authz.Supplier
	if b.supplier != nil {
		if record, err = q.s.seals.Supplier(b.supplier); err != nil {
			q.s.metrics.evidence.WithLabelValues("supplier").Inc()
			return authn.Caller{}, fail(evidenceInvalid, fmt.Errorf("supplier record: %w", err))
		}
	}
	caller, err := q.c.verified.Authenticate(record, q.c.caller.Scope(), q.s.now())
	if err != nil {
		return authn.Caller{}, refuseCaller(err)
	}
	return caller, nil
}

// candidates are the metering points of the batch with their legal files:
// those listed, or those an index proposes.
func (q *querying) candidates(ctx context.Context, b *batch, after meter.EAN, n int) ([]Candidate, error) {
	if !q.asked.listed {
		found, err := q.s.many.Facts.CandidateFiles(ctx, q.c.caller.Supplier(), after, n)
		if err != nil {
			return nil, fail(databaseUnavailable, fmt.Errorf("metering points: %w", err))
		}
		b.last = len(found) < n
		return found, nil
	}
	at, found := slices.BinarySearchFunc(q.asked.eans, after, func(a, b meter.EAN) int { return int(min(max(a.Int64()-b.Int64(), -1), 1)) })
	if found {
		at++
	}
	eans := q.asked.eans[at:]
	b.last = len(eans) <= n
	eans = eans[:min(n, len(eans))]
	if len(eans) == 0 {
		return nil, nil
	}
	files, err := q.s.many.Facts.LegalFiles(ctx, eans)
	if err != nil {
		return nil, fail(databaseUnavailable, fmt.Errorf("legal files: %w", err))
	}
	out := make([]Candidate, len(eans))
	for i, ean := range eans {
		out[i] = Candidate{ean, files[i]}
	}
	return out, nil
}

// decide is the decision on one metering point, as in readings; nil is one to be
// left out: an index proposed it, and nothing is granted.
func (q *querying) decide(caller authn.Caller, k Candidate, now time.Time) *queryPoint {
	p := &queryPoint{ean: k.EAN, version: k.LegalFile.Version, file: k.LegalFile.Sealed}
	asked := q.asked.query
	asked.ean = k.EAN
	p.answer = answer{interaction: q.ev.interaction, query: asked, profile: q.s.profile}
	p.record = q.newRecord(caller, asked, now)

	file, err := q.s.legalFile(k.LegalFile, k.EAN)
	if err != nil {
		if !q.asked.listed {
			return nil // an index proposed it: that is no reason to name it
		}
		p.fail(fail(evidenceInvalid, err))
		return p
	}
	commodity := meter.Electricity // of an unknown one it is never seen: see readings
	if file != nil {
		commodity = file.Commodity()
	}
	p.request = asked.request(commodity, q.s.profile)
	grant, withheld, err := authz.Decide(caller, p.request, file, q.s.profile, now)
	if !q.asked.listed && (err != nil || grant.Empty()) {
		return nil
	}
	if err != nil {
		p.unrelated(asked.fields, err)
		return p
	}
	p.grant, p.answer.withheld = grant, withheld
	p.record.Fields = p.request.Fields
	p.record.LegalFile, p.record.FileVersion = file.Digest(), file.Version()
	p.record.Granted, p.record.Withheld = audit.GrantedItems(grant), withheld
	p.record.Outcome = outcome(grant, withheld)
	return p
}

func (q *querying) newRecord(caller authn.Caller, asked query, now time.Time) audit.Record {
	return audit.Record{
		InteractionID: q.ev.interaction, At: now.UTC().Truncate(time.Microsecond), Operation: audit.Readings,
		Supplier: caller.Supplier(), TokenID: caller.TokenID(), Certificate: caller.Thumbprint(),
		EAN: asked.ean, Purpose: asked.purpose, Days: asked.days, Fields: asked.fields,
		Resolution: asked.resolution, Kind: asked.kind, AsOf: q.asked.asOf, Profile: q.s.profile.Digest(),
	}
}

// fail makes the metering point one with a problem of its own.
func (p *queryPoint) fail(err error) {
	var f *failure
	if !errors.As(err, &f) {
		f = &failure{kind: internalError, cause: err}
	}
	p.answer.erase()
	p.answer.series, p.answer.withheld, p.grant = nil, nil, authz.Grant{}
	p.problem, p.record.Outcome = f, audit.Failed
}

// unrelated makes it one that the caller has nothing to do with.
func (p *queryPoint) unrelated(named []meter.FieldCode, cause error) {
	p.fail(fail(meteringPointNotFound, cause))
	p.record = withoutDecision(p.record, named)
	p.record.Outcome = audit.NoRelation
}

// finish is the second half of a batch: it fetches, has opened, and records.
func (q *querying) finish(ctx context.Context, b *batch) error {
	err := q.open(ctx, b)
	if err != nil {
		// What was asked for and not given is recorded, as of one metering point.
		for _, p := range b.points {
			if !p.grant.Empty() && p.problem == nil {
				p.record.Outcome = audit.Failed
			}
		}
	}
	if recorded := q.record(ctx, b); recorded != nil {
		b.erase()
		if err != nil {
			f := asFailure(ctx, err)
			return &failure{kind: f.kind, challenge: f.challenge, cause: errors.Join(f.cause, recorded)}
		}
		return recorded
	}
	if err != nil {
		b.erase()
	}
	return err
}

// record commits the access records of the batch, one for each metering point.
func (q *querying) record(ctx context.Context, b *batch) error {
	if len(b.points) == 0 {
		return nil
	}
	records := make([]audit.Record, len(b.points))
	for i, p := range b.points {
		records[i], p.record = p.record, audit.Record{}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	if err := q.s.many.Recorder.RecordMany(ctx, records); err != nil {
		return fail(recordNotWritten, fmt.Errorf("access records: %w", err))
	}
	return nil
}

// open fetches the granted rows of the batch and has them opened.
func (q *querying) open(ctx context.Context, b *batch) error {
	var points []*queryPoint
	var grants []authz.Grant
	for _, p := range b.points {
		if !p.grant.Empty() {
			points, grants = append(points, p), append(grants, p.grant)
		}
	}
	if len(points) == 0 {
		return nil
	}
	blocks, err := q.s.many.Rows.BlocksOfMany(ctx, grants, q.asked.asOf)
	if err != nil {
		return fail(databaseUnavailable, fmt.Errorf("blocks: %w", err))
	}
	units := make([]OpenUnit, len(points))
	for i, p := range points {
		units[i] = OpenUnit{LegalFile: p.file, Request: p.request, PointBlocks: blocks[i]}
		p.file = nil
	}
	// Once it was asked for, decryption takes place: see Server.open.
	asked, cancel := untilDeadline(ctx)
	defer cancel()
	for len(units) > 0 {
		n := together(units)
		if err := q.openSome(asked, b.supplier, units[:n], points); err != nil {
			return err
		}
		units, points = units[n:], points[n:]
	}
	return nil
}

// together is how many of the units go into one call.
func together(units []OpenUnit) int {
	size, keys := 0, 0
	for i := range units {
		u := &units[i]
		size += len(u.LegalFile) + 256*len(u.Keys) + 32*len(u.Blocks) + 256
		keys += len(u.Keys)
		for j := range u.Blocks {
			size += len(u.Blocks[j].Ciphertext)
		}
		if i > 0 && (size > maxOpenBytes || keys > maxOpenKeys) {
			return i
		}
	}
	return len(units)
}

// openSome has units opened in one call, which are of the first of the points. One
// unit that no cryptoserver can take must not cost the others: where a call fails
// though cryptoservers serve, each half of it is asked for by itself. What was
// opened before an error belongs to its point, with its receipt.
func (q *querying) openSome(ctx context.Context, supplier []byte, units []OpenUnit, points []*queryPoint) error {
	opened, err := q.s.many.Opener.OpenMany(ctx, OpenManyRequest{
		Token: q.c.token, Supplier: supplier, Interaction: q.ev.interaction, Units: units,
	})
	switch {
	case err == nil && len(opened) == len(units):
		for i, o := range opened {
			q.take(points[i], o)
		}
		return nil
	case err == nil:
		err = errors.New("opened another number of metering points than asked")
	case errors.Is(err, ErrTokenRefused):
		// It expired on the way, or is used up, or the supplier record changed.
		return &failure{kind: unauthenticated, cause: err}
	}
	if ctx.Err() != nil || errors.Is(err, ErrNoCryptoserver) && !q.served(ctx) {
		return fail(decryptionUnavailable, fmt.Errorf("open: %w", err))
	}
	if half := len(units) / 2; half > 0 {
		if err := q.openSome(ctx, supplier, units[:half], points); err != nil {
			return err
		}
		return q.openSome(ctx, supplier, units[half:], points[half:])
	}
	kind := internalError
	if errors.Is(err, ErrNoCryptoserver) {
		kind = decryptionUnavailable
	}
	q.take(points[0], OpenedUnit{Err: fail(kind, fmt.Errorf("open: %w", err))})
	return nil
}

// served says whether any cryptoserver serves.
func (q *querying) served(ctx context.Context) bool {
	return slices.ContainsFunc(q.s.health.Cryptoservers(ctx), func(c Cryptoserver) bool { return c.Serves })
}

// take is what came of opening a metering point.
func (q *querying) take(p *queryPoint, o OpenedUnit) {
	q.s.metrics.faults.WithLabelValues(faultOutside).Add(float64(o.Outside))
	q.s.metrics.faults.WithLabelValues(faultDamaged).Add(float64(o.Damaged))
	switch {
	case o.Err == nil:
		p.answer.series, p.answer.withheld = reconcile(o.Opened, p.answer.withheld)
		p.record.Receipt, p.record.Withheld = o.Receipt, p.answer.withheld
		p.record.Outcome = outcome(p.grant, p.answer.withheld)
	case errors.Is(o.Err, authz.ErrNoRelation): // see readings
		p.unrelated(p.answer.query.fields, o.Err)
	case errors.Is(o.Err, ErrEvidenceRefused):
		q.s.metrics.evidence.WithLabelValues("legal_file").Inc()
		p.fail(fail(evidenceInvalid, o.Err))
	default:
		p.fail(o.Err)
	}
}

// fresh looks at the facts again, if they were read too long ago, behind the
// points that did not leave yet. It returns how many of these still stand: an
// error says why the next one does not.
func (q *querying) fresh(ctx context.Context, b *batch, points []*queryPoint) (int, error) {
	if time.Since(b.evidence) <= evidenceAge || len(points) == 0 {
		return len(points), nil
	}
	ctx, cancel := context.WithTimeout(ctx, q.s.timeout)
	defer cancel()
	evidence := time.Now()
	supplier, err := q.s.facts.Supplier(ctx, q.c.caller.Supplier())
	if err != nil {
		return 0, fail(databaseUnavailable, fmt.Errorf("supplier record: %w", err))
	}
	if !bytes.Equal(supplier, b.supplier) {
		return 0, fail(evidenceChanged, errors.New("the supplier's record"))
	}
	eans := make([]meter.EAN, len(points))
	for i, p := range points {
		eans[i] = p.ean
	}
	versions, err := q.s.many.Facts.Versions(ctx, eans)
	if err != nil {
		return 0, fail(databaseUnavailable, fmt.Errorf("versions: %w", err))
	}
	for i, p := range points {
		if versions[i] != p.version {
			return i, fail(evidenceChanged, errors.New("a legal file"))
		}
	}
	b.evidence = evidence
	return len(points), nil
}
