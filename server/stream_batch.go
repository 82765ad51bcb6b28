package server

import (
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
	// evidenceAge is how old a decision may be when what it gives leaves, without
	// its being taken again: on the facts and by the clock of then.
	evidenceAge = time.Second
)

// About what a metering point takes in memory until its line has left, in bytes:
// by itself (its legal file), and for each stored day. What a batch takes besides
// while it is dealt with is bounded by the turns.
const (
	pointBytes    = 6 << 10
	dayBytes      = 160
	intervalBytes = 1 << 10
	listedBytes   = 16
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
	q.cost()
	return q, nil
}

// cost works out what a metering point may cost.
func (q *querying) cost() {
	for _, commodity := range []meter.Commodity{meter.Electricity, meter.Gas} {
		fields := q.asked.request(commodity, q.s.profile).Fields
		days := q.asked.days.Len() + 1 // a closing read
		intervals := 0
		for _, code := range fields {
			if f, _ := q.s.profile.FieldByCode(code); f.Class == meter.Intervals {
				intervals += days
			}
		}
		q.days, q.intervals = max(q.days, days*len(fields)), max(q.intervals, intervals)
	}
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

// memory is about what the query takes while so many of its batches are there,
// in bytes: with the line of one metering point, and those listed.
func (q *querying) memory(batches, most int) int64 {
	n := q.size(maxBatch, most)
	batch := n * (pointBytes + q.days*dayBytes + q.intervals*intervalBytes)
	return int64(batches*batch+listedBytes*len(q.asked.eans)) + q.s.longest(q.c, q.asked.query)
}

// takeRoom waits for room for as much; leave gives it back.
func (q *querying) takeRoom(ctx context.Context, batches, most int) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, q.s.timeout)
	defer cancel()
	return q.s.limits.takeRoom(ctx, q.c.caller.Supplier(), q.memory(batches, most))
}

// batch is metering points that were decided, opened and recorded together.
type batch struct {
	supplier []byte    // sealed record
	evidence time.Time // when the facts were last read: no change after this was missed
	points   []*queryPoint
	leftOut  uint32    // after the last of the points
	through  meter.EAN // the last metering point dealt with
	last     bool      // nothing comes after it
	release  func()    // of its turn
}

// queryPoint is what came of one metering point.
type queryPoint struct {
	ean     meter.EAN
	leftOut uint32 // how many between the one before and this one
	verdict verdict
	answer  answer
	problem *failure

	// Until it is recorded.
	file   []byte // sealed
	record audit.Record
}

// granted says whether there is anything of it to be opened.
func (p *queryPoint) granted() bool { return p.problem == nil && !p.verdict.grant.Empty() }

// verdict is what was decided on a metering point, and on what.
type verdict struct {
	version  uint64           // of the newest row of its legal file
	file     *authz.LegalFile // nil: there is none, or it does not verify
	request  authz.Request
	grant    authz.Grant
	withheld []authz.Withheld
	err      error // authz.ErrNoRelation, or why the file does not verify
}

// judge decides on a metering point as it is stored, as readings does.
func (q *querying) judge(caller authn.Caller, k Candidate, now time.Time) verdict {
	file, err := q.s.legalFile(k.LegalFile, k.EAN)
	if err != nil {
		return verdict{version: k.LegalFile.Version, err: err}
	}
	return q.judgeBy(caller, k.EAN, k.LegalFile.Version, file, now)
}

// judgeBy does so by a legal file that was verified; nil is none.
func (q *querying) judgeBy(caller authn.Caller, ean meter.EAN, version uint64, file *authz.LegalFile, now time.Time) verdict {
	v := verdict{version: version, file: file}
	asked := q.asked.query
	asked.ean = ean
	v.request = asked.request(commodityOf(file), q.s.profile)
	v.grant, v.withheld, v.err = authz.Decide(caller, v.request, file, q.s.profile, now)
	return v
}

// same says whether two verdicts give the same, for the same reasons. Why a file
// does not verify is nobody's concern, and that there is none or that it knows
// nothing of the caller is the same.
func (v *verdict) same(o *verdict) bool {
	if v.err != nil || o.err != nil {
		return v.err != nil && o.err != nil && errors.Is(v.err, authz.ErrNoRelation) == errors.Is(o.err, authz.ErrNoRelation)
	}
	return sameGrant(v.grant, o.grant) && slices.Equal(v.withheld, o.withheld)
}

// sameGrant compares what the stored days to be read follow from, too.
func sameGrant(a, b authz.Grant) bool {
	return a.Profile() == b.Profile() && slices.EqualFunc(a.Items(), b.Items(), func(a, b authz.GrantItem) bool {
		return a.Basis == b.Basis && a.Rule == b.Rule && a.Spec.Field.Code == b.Spec.Field.Code && a.Spec.Kind == b.Spec.Kind &&
			a.Spec.Resolution == b.Spec.Resolution && a.Spec.Granularity == b.Spec.Granularity && a.Spec.Points == b.Spec.Points &&
			slices.Equal(a.Spec.Days.Ranges(), b.Spec.Days.Ranges())
	})
}

// erase forgets the readings of the batch, which are sent, and gives its turn back.
func (b *batch) erase() {
	b.release()
	for _, p := range b.points {
		p.answer.erase()
	}
}

// next decides on the next n metering points after a place: the first half of a
// batch. The facts are read anew, those about the caller too.
func (q *querying) next(ctx context.Context, after meter.EAN, n int) (*batch, error) {
	b := &batch{evidence: time.Now(), release: func() {}} // before the statements
	caller, supplier, err := q.admit(ctx)
	if err != nil {
		return nil, err
	}
	b.supplier = supplier
	candidates, err := q.candidates(ctx, b, after, n)
	if err != nil {
		return nil, err
	}
	now := q.s.now()
	for _, k := range candidates {
		b.through = k.EAN
		p := q.decide(ctx, caller, k, now)
		if p == nil {
			b.leftOut++
			continue
		}
		p.leftOut, b.leftOut = b.leftOut, 0
		b.points = append(b.points, p)
	}
	q.countUnrelated(b)
	return b, nil
}

// admit is the caller as its record is now, and the record, sealed.
func (q *querying) admit(ctx context.Context) (authn.Caller, []byte, error) {
	sealed, err := q.s.facts.Supplier(ctx, q.c.caller.Supplier())
	if err != nil {
		return authn.Caller{}, nil, fail(databaseUnavailable, fmt.Errorf("supplier record: %w", err))
	}
	var record *authz.Supplier
	if sealed != nil {
		if record, err = q.s.seals.Supplier(sealed); err != nil {
			q.s.metrics.evidence.WithLabelValues("supplier").Inc()
			return authn.Caller{}, nil, fail(evidenceInvalid, fmt.Errorf("supplier record: %w", err))
		}
	}
	caller, err := q.c.verified.Authenticate(record, q.c.caller.Scope(), q.s.now())
	if err != nil {
		return authn.Caller{}, nil, refuseCaller(err)
	}
	return caller, sealed, nil
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
func (q *querying) decide(ctx context.Context, caller authn.Caller, k Candidate, now time.Time) *queryPoint {
	v := q.judge(caller, k, now)
	if !q.asked.listed && (v.err != nil || v.grant.Empty()) {
		return nil // also where its file does not verify: that is no reason to name it
	}
	p := &queryPoint{ean: k.EAN, verdict: v, file: k.LegalFile.Sealed}
	asked := q.asked.query
	asked.ean = k.EAN
	p.answer = answer{interaction: q.ev.interaction, query: asked, profile: q.s.profile}
	p.record = q.s.readingsRecord(ctx, caller, asked, now)
	switch {
	case errors.Is(v.err, authz.ErrNoRelation):
		p.unrelated(asked.fields, v.err)
	case v.err != nil:
		p.fail(fail(evidenceInvalid, v.err))
	default:
		p.answer.withheld = v.withheld
		decided(&p.record, v.request, v.file, v.grant, v.withheld)
		p.record.Outcome = outcome(v.grant, v.withheld)
	}
	return p
}

// fail makes the metering point one with a problem of its own.
func (p *queryPoint) fail(err error) {
	var f *failure
	if !errors.As(err, &f) {
		f = &failure{kind: internalError, cause: err}
	}
	p.answer.erase()
	p.answer.series, p.answer.withheld = nil, nil
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
			if p.granted() {
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
		if p.granted() {
			points, grants = append(points, p), append(grants, p.verdict.grant)
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
		units[i] = OpenUnit{LegalFile: p.file, Request: p.verdict.request, PointBlocks: blocks[i]}
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
	q.s.countFaults(&o.Opened)
	switch {
	case o.Err == nil:
		p.answer.series, p.answer.withheld = reconcile(o.Opened, p.answer.withheld)
		p.record.Receipt, p.record.Withheld = o.Receipt, p.answer.withheld
		p.record.Outcome = outcome(p.verdict.grant, p.answer.withheld)
	case errors.Is(o.Err, authz.ErrNoRelation): // see readings
		p.unrelated(p.answer.query.fields, o.Err)
	case errors.Is(o.Err, ErrEvidenceRefused):
		q.s.metrics.evidence.WithLabelValues("legal_file").Inc()
		p.fail(fail(evidenceInvalid, o.Err))
	default:
		p.fail(o.Err)
	}
}

// fresh decides again on points that did not leave yet, on the facts and by the
// clock of now. It returns how many of these still stand, for nothing changed in
// what is given of them: an error says why the next one does not.
func (q *querying) fresh(ctx context.Context, b *batch, points []*queryPoint) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, q.s.timeout)
	defer cancel()
	evidence := time.Now()
	caller, supplier, err := q.admit(ctx)
	if err != nil {
		return 0, err
	}
	verdicts, err := q.again(ctx, caller, points)
	if err != nil {
		return 0, err
	}
	b.supplier = supplier
	for i, p := range points {
		if !p.verdict.same(&verdicts[i]) {
			return i, fail(evidenceChanged, errors.New("what is granted"))
		}
		p.verdict = verdicts[i]
	}
	b.evidence = evidence
	return len(points), nil
}

// again are the verdicts on points as of now. Legal files of which there is no
// other version are not fetched again.
func (q *querying) again(ctx context.Context, caller authn.Caller, points []*queryPoint) ([]verdict, error) {
	eans := make([]meter.EAN, len(points))
	for i, p := range points {
		eans[i] = p.ean
	}
	versions, err := q.s.many.Facts.Versions(ctx, eans)
	if err != nil {
		return nil, fail(databaseUnavailable, fmt.Errorf("versions: %w", err))
	}
	out := make([]verdict, len(points))
	var changed []int // of the points
	eans = eans[:0]
	now := q.s.now()
	for i, p := range points {
		switch v := &p.verdict; {
		case versions[i] != v.version:
			changed, eans = append(changed, i), append(eans, p.ean)
		case v.err != nil && v.file == nil && v.version > 0: // it does not verify
			out[i] = *v
		default:
			out[i] = q.judgeBy(caller, p.ean, v.version, v.file, now)
		}
	}
	if len(changed) == 0 {
		return out, nil
	}
	files, err := q.s.many.Facts.LegalFiles(ctx, eans)
	if err != nil {
		return nil, fail(databaseUnavailable, fmt.Errorf("legal files: %w", err))
	}
	for n, i := range changed {
		out[i] = q.judge(caller, Candidate{points[i].ean, files[n]}, now)
	}
	return out, nil
}
