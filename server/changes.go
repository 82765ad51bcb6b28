package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
)

// Feed finds what was stored, in the order in which it was, and what begins or
// ends by the calendar. It only says where to look: what is told, the sealed
// legal files decide. An error means that the database did not serve.
type Feed interface {
	// FeedHorizon returns the oldest transaction under way: of those before it
	// nothing can come any more; and the one that comes next.
	FeedHorizon(ctx context.Context) (oldest, next uint64, err error)
	// FeedSince returns a transaction such that all that was committed after a
	// moment was by it or a later one.
	FeedSince(ctx context.Context, at time.Time) (uint64, error)
	// ArrivedReadings returns at most limit batches of metering points that the
	// indexes connect with a supplier, after a place and before a horizon. done:
	// there are no more; else next is where to go on, which is after the last one
	// or, when many of others were looked at, later.
	ArrivedReadings(ctx context.Context, gln meter.GLN, after FeedPlace, horizon uint64, limit int) (rows []ArrivedReadings, next FeedPlace, done bool, err error)
	// ArrivedFiles does the same for versions of legal files that may name the
	// supplier, or followed on one that did.
	ArrivedFiles(ctx context.Context, gln meter.GLN, after FeedPlace, horizon uint64, limit int) (rows []ArrivedFile, next FeedPlace, done bool, err error)
	// BasisDays returns metering points where something may begin or end for a
	// supplier on one of the days: ascending, above after. Fewer than limit: there
	// are no more.
	BasisDays(ctx context.Context, gln meter.GLN, days []meter.Day, after meter.EAN, limit int) ([]meter.EAN, error)
	// ExpiredConsents returns consents of a supplier that expired up to a moment,
	// in that order, after one. Fewer than limit: there are no more.
	ExpiredConsents(ctx context.Context, gln meter.GLN, after ExpiredConsent, until time.Time, limit int) ([]ExpiredConsent, error)
	// MarkChanges notes which transactions are under way, for FeedSince.
	MarkChanges(ctx context.Context) error
	// ChangesLag is how long ago it was that all transactions had begun which have
	// ended by now.
	ChangesLag(ctx context.Context) (time.Duration, error)
}

// FeedPlace is a place in the order of arrival, after a row.
type FeedPlace struct {
	Arrived uint64 // transaction
	EAN     int64
	ID      [16]byte // of a batch
	Version int64    // of a legal file
}

func (p FeedPlace) compare(o FeedPlace) int {
	return cmp.Or(cmp.Compare(p.Arrived, o.Arrived), cmp.Compare(p.EAN, o.EAN), slices.Compare(p.ID[:], o.ID[:]), cmp.Compare(p.Version, o.Version))
}

// ArrivedReadings is what a batch stored of a metering point.
type ArrivedReadings struct {
	Place   FeedPlace
	EAN     meter.EAN
	At      time.Time // of storing, UTC
	Changed []ChangedDays
}

// ChangedDays are days of fields, stored for the first time or once more.
type ChangedDays struct {
	Corrected bool
	Fields    []meter.FieldCode
	Days      meter.DayRange
}

// ArrivedFile is a version of a legal file, and the one before; sealed.
type ArrivedFile struct {
	Place            FeedPlace
	EAN              meter.EAN
	Version          uint64
	Sealed, Previous []byte
}

// ExpiredConsent is a consent that may have expired at a time.
type ExpiredConsent struct {
	At  time.Time // UTC
	EAN meter.EAN
	ID  [16]byte
}

const (
	// feedBack is how far back since may lie. Nothing removes what the feed is
	// read from; this bounds what has to be promised.
	feedBack = 90 * 24 * time.Hour
	// feedSettles is how long the calendar is waited for: a gateway whose clock
	// is ahead by less than that does not pass over what another one stores just
	// before midnight.
	feedSettles = time.Minute

	// The work for one answer: metering points whose legal files are verified,
	// days of the calendar, and looks for what arrived, each of which is bounded
	// by itself.
	feedVerified = 1000
	feedDays     = 120
	feedLooks    = 3
	// What is fetched at once. Legal files can be large.
	feedRows  = 100
	feedFiles = 25
)

// feedState is what a cursor of the feed holds: the places in what arrived and
// in the calendar up to which all is told.
//
// Form: version 1; of readings transaction (8), metering point (8), batch (16),
// what of it is told: run (2), first day of it that is not (4); of legal files
// transaction (8), metering point (8), version (8); of the calendar the day (4)
// and the metering point of the next day (8) up to which is told; of expired
// consents microseconds since 1970 (8), metering point (8), id (16). All big
// endian.
type feedState struct {
	readings FeedPlace
	// The row at readings is told up to day from of its run; all of it when run
	// is wholeRow.
	run  uint16
	from meter.Day

	files   FeedPlace
	day     meter.Day // up to it
	dayEAN  meter.EAN // and the day after, up to this metering point; zero: nothing of it
	expired ExpiredConsent
}

const (
	feedStateVersion = 1
	feedStateSize    = 1 + 38 + 24 + 12 + 32
	wholeRow         = math.MaxUint16
)

func (f *feedState) encode() []byte {
	w := make(stateWriter, 0, feedStateSize)
	w = append(w, feedStateVersion)
	w.u64(f.readings.Arrived)
	w.u64(uint64(f.readings.EAN))
	w = append(w, f.readings.ID[:]...)
	w = append(w, byte(f.run>>8), byte(f.run))
	w.u32(uint32(f.from))
	w.u64(f.files.Arrived)
	w.u64(uint64(f.files.EAN))
	w.u64(uint64(f.files.Version))
	w.u32(uint32(f.day))
	w.u64(uint64(f.dayEAN.Int64()))
	w.u64(uint64(f.expired.At.UnixMicro()))
	w.u64(uint64(f.expired.EAN.Int64()))
	return append(w, f.expired.ID[:]...)
}

func parseFeedState(b []byte) (f feedState, err error) {
	if len(b) != feedStateSize || b[0] != feedStateVersion {
		return f, errCursor
	}
	r := stateReader(b[1:])
	f.readings = FeedPlace{Arrived: r.u64(), EAN: int64(r.u64())}
	copy(f.readings.ID[:], r.take(16))
	run := r.take(2)
	f.run = uint16(run[0])<<8 | uint16(run[1])
	f.from = meter.Day(r.u32())
	f.files = FeedPlace{Arrived: r.u64(), EAN: int64(r.u64()), Version: int64(r.u64())}
	f.day = meter.Day(r.u32())
	var bad [2]error
	f.dayEAN, bad[0] = eanOrNone(r.u64())
	f.expired.At = time.UnixMicro(int64(r.u64())).UTC()
	f.expired.EAN, bad[1] = eanOrNone(r.u64())
	copy(f.expired.ID[:], r.take(16))
	// It was sealed by a gateway; this is for those of another version.
	if errors.Join(bad[:]...) != nil || f.readings.EAN < 0 || f.files.EAN < 0 || f.files.Version < 0 || f.from < 0 || f.day < 0 ||
		f.expired.At.Unix() < 0 || f.expired.At.After(forever) || meter.DayOf(forever, time.UTC) < f.day {
		return feedState{}, errCursor
	}
	return f, nil
}

func eanOrNone(n uint64) (meter.EAN, error) {
	if n == 0 {
		return meter.EAN{}, nil
	}
	return meter.EANFromInt64(int64(n))
}

type stateWriter []byte

func (w *stateWriter) u32(v uint32) {
	*w = append(*w, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

func (w *stateWriter) u64(v uint64) {
	w.u32(uint32(v >> 32))
	w.u32(uint32(v))
}

type stateReader []byte

func (r *stateReader) take(n int) []byte {
	p := (*r)[:n]
	*r = (*r)[n:]
	return p
}

func (r *stateReader) u32() uint32 {
	p := r.take(4)
	return uint32(p[0])<<24 | uint32(p[1])<<16 | uint32(p[2])<<8 | uint32(p[3])
}

func (r *stateReader) u64() uint64 { return uint64(r.u32())<<32 | uint64(r.u32()) }

// The reasons of faults of listChanges.
const (
	wantSince     = "must be a time that has been, at most 90 days ago, such as 2026-03-15T12:00:00Z (RFC 3339)"
	wantEither    = "must not be given together with cursor"
	wantFeedNewer = "must be at most 90 days old, and of this database: ask by since instead"
)

// checkChanges finds the faults of a listChanges request that the contract
// cannot say.
func checkChanges(s *Server, r *http.Request) paramErrors {
	var errs paramErrors
	q := r.URL.Query()
	if since := q.Get("since"); since != "" {
		if _, err := s.feedSince(since); err != nil {
			errs.add("/query/since", wantSince)
		} else if q.Has("cursor") {
			errs.add("/query/since", wantEither)
		}
	}
	if c := q.Get("cursor"); c != "" {
		if _, err := s.feedCursor(callOf(r.Context()).caller.Supplier(), c); err != nil {
			errs.add("/query/cursor", feedFault(err))
		}
	}
	return errs
}

func feedFault(err error) string {
	if errors.Is(err, errCursorOld) {
		return wantFeedNewer
	}
	return wantCursor
}

func (s *Server) feedSince(text string) (time.Time, error) {
	now := s.now()
	t, err := parseAsOf(text, now)
	if err == nil && now.Sub(t) > feedBack {
		err = errors.New("too long ago")
	}
	return t, err
}

func (s *Server) feedCursor(caller meter.GLN, text string) (feedState, error) {
	of, err := s.cursors.of(cursorChanges, caller, [32]byte{})
	if err != nil {
		return feedState{}, err
	}
	b, err := of.open(text, s.now())
	if err != nil {
		return feedState{}, err
	}
	return parseFeedState(b)
}

// ListChanges answers GET /v1/changes.
func (s *Server) ListChanges(ctx context.Context, r openapi.ListChangesRequestObject) (openapi.ListChangesResponseObject, error) {
	c := callOf(ctx)
	supplier := c.caller.Supplier()
	of, err := s.cursors.of(cursorChanges, supplier, [32]byte{})
	if err != nil {
		return nil, err
	}
	unserved := func(err error) error { return fail(databaseUnavailable, fmt.Errorf("changes: %w", err)) }
	// Before anything else is read: what is committed after this comes the next
	// time.
	oldest, next, err := s.feed.FeedHorizon(ctx)
	if err != nil {
		return nil, unserved(err)
	}
	now := s.now()
	f := &feeding{s: s, caller: c.caller, now: now, horizon: oldest, limit: defaultLimit, late: halfOf(ctx)}
	if r.Params.Limit != nil {
		f.limit = *r.Params.Limit
	}
	loc := s.profile.Location()
	switch {
	case r.Params.Cursor != nil:
		f.at, err = s.feedCursor(supplier, *r.Params.Cursor)
		// Transactions that are still to come: the database was put back, or is
		// another one.
		if err == nil && max(f.at.readings.Arrived, f.at.files.Arrived) > next {
			err = errCursorOld
		}
		if err != nil {
			return nil, failParams(paramErrors{{Pointer: "/query/cursor", Reason: feedFault(err)}})
		}
	default:
		from, arrived := now.Add(-feedSettles), oldest
		if r.Params.Since != nil {
			from = *r.Params.Since
			if arrived, err = s.feed.FeedSince(ctx, from); err != nil {
				return nil, unserved(err)
			}
			arrived = min(arrived, oldest)
		}
		f.at = feedState{
			readings: FeedPlace{Arrived: arrived}, run: wholeRow, files: FeedPlace{Arrived: arrived},
			day: meter.DayOf(from, loc), expired: ExpiredConsent{At: from.UTC().Truncate(time.Microsecond)},
		}
	}
	release, err := s.turn(ctx, c.caller.Supplier())
	if err != nil {
		return nil, err
	}
	defer release()
	if err := f.collect(ctx); err != nil {
		return nil, unserved(err)
	}
	page := openapi.Changes{
		InteractionId: eventOf(ctx).interaction, Changes: f.changes, More: f.more, Cursor: of.seal(f.at.encode(), now),
	}
	rendered, err := json.Marshal(page)
	if err != nil {
		return nil, fmt.Errorf("rendering changes: %w", err)
	}
	rec := s.newRecord(ctx, c.caller, s.now())
	rec.Operation, rec.Outcome = audit.Changes, audit.Given
	release()
	if err := s.record(ctx, rec); err != nil {
		return nil, err
	}
	return callOf(ctx).rendered(rendered), nil
}

func (b *body) VisitListChangesResponse(w http.ResponseWriter) error { return b.write(w) }

// feeding collects the changes of one answer, and says how far it came.
type feeding struct {
	s       *Server
	caller  authz.Caller
	now     time.Time
	horizon uint64
	limit   int
	late    func() bool // half of the request's time is gone; nil: never

	at       feedState // up to here all that there is to tell is in changes, or was told before
	changes  []openapi.Change
	more     bool
	verified int // metering points whose legal files were
}

// full says that the answer can take no more. What there is to tell is told the
// next time.
func (f *feeding) full() bool {
	return len(f.changes) >= f.limit || f.verified >= feedVerified || f.late != nil && f.late()
}

// collect goes through the calendar, and then through what arrived.
func (f *feeding) collect(ctx context.Context) error {
	f.changes = []openapi.Change{} // [] and not null
	for _, part := range []func(context.Context) (bool, error){f.calendar, f.expiries, f.arrivals} {
		done, err := part(ctx)
		if err != nil {
			return err
		}
		f.more = f.more || !done
	}
	return nil
}

// files verifies the newest legal files of metering points. One that does not
// verify, or is not there, is nil and gives nothing: the metric calls the
// operator.
func (f *feeding) files(ctx context.Context, eans []meter.EAN) (map[meter.EAN]*authz.LegalFile, error) {
	out := make(map[meter.EAN]*authz.LegalFile, len(eans))
	eans = slices.SortedFunc(slices.Values(eans), func(a, b meter.EAN) int { return cmp.Compare(a.Int64(), b.Int64()) })
	for part := range slices.Chunk(slices.Compact(eans), feedFiles) {
		stored, err := f.s.many.Facts.LegalFiles(ctx, part)
		if err != nil {
			return nil, err
		}
		for i, ean := range part {
			out[ean], _ = f.s.legalFile(stored[i], ean)
		}
		f.verified += len(part)
	}
	return out, nil
}

func (f *feeding) bases(file *authz.LegalFile, at time.Time) []meter.Basis {
	return authz.BasesNow(f.caller, file, f.s.profile, at)
}

// tellBases tells that the caller's bases changed, and those it has now.
func (f *feeding) tellBases(file *authz.LegalFile, ean meter.EAN, at time.Time) {
	now := []openapi.LegalBasis{} // [] and not null
	for _, b := range f.bases(file, f.now) {
		now = append(now, openapi.LegalBasis(b.String()))
	}
	f.changes = append(f.changes, openapi.Change{Kind: openapi.BASES, Ean: ean.String(), At: at.UTC(), LegalBases: &now})
}

// turned tells of a metering point where the caller's bases differ before and
// after a moment, by the file as it is now.
func (f *feeding) turned(file *authz.LegalFile, ean meter.EAN, at time.Time) {
	if file != nil && !slices.Equal(f.bases(file, at.Add(-time.Microsecond)), f.bases(file, at)) {
		f.tellBases(file, ean, at)
	}
}

// calendar tells of bases that began or ended with a day, without anything
// being stored.
func (f *feeding) calendar(ctx context.Context) (bool, error) {
	loc := f.s.profile.Location()
	today := meter.DayOf(f.now.Add(-feedSettles), loc)
	for n := 0; f.at.day < today; n++ {
		if n == feedDays {
			return false, nil
		}
		day := f.at.day + 1
		start := day.Start(loc)
		for more := true; more; {
			if f.full() {
				return false, nil
			}
			eans, err := f.s.feed.BasisDays(ctx, f.caller.Supplier(), turningDays(f.s.profile, day), f.at.dayEAN, feedRows)
			if err != nil {
				return false, err
			}
			more = len(eans) == feedRows
			files, err := f.files(ctx, eans)
			if err != nil {
				return false, err
			}
			for _, ean := range eans {
				if len(f.changes) >= f.limit {
					return false, nil
				}
				f.turned(files[ean], ean, start)
				f.at.dayEAN = ean
			}
		}
		f.at.day, f.at.dayEAN = day, meter.EAN{}
	}
	return true, nil
}

// turningDays are the days of legal files by which bases can begin or end with a
// day: that day itself, and those that leave what may be asked for: the
// retention, or what a rule looks back.
func turningDays(p *meter.Profile, day meter.Day) []meter.Day {
	months := []int{p.RetentionMonths()}
	for purpose := meter.Billing; purpose <= meter.CustomerService; purpose++ {
		for _, rule := range p.Rules(purpose) {
			if rule.Lookback > 0 {
				months = append(months, rule.Lookback)
			}
		}
	}
	days := []meter.Day{day}
	for _, m := range months {
		for d := (day - 1).AddMonths(-m); d <= day.AddMonths(-m); d++ {
			if d >= 0 {
				days = append(days, d)
			}
		}
	}
	slices.Sort(days)
	return slices.Compact(days)
}

// expiries tells of consents that may not be used any more from an instant on.
func (f *feeding) expiries(ctx context.Context) (bool, error) {
	until := f.now.Add(-feedSettles)
	for {
		if f.full() {
			return false, nil
		}
		expired, err := f.s.feed.ExpiredConsents(ctx, f.caller.Supplier(), f.at.expired, until, feedRows)
		if err != nil {
			return false, err
		}
		eans := make([]meter.EAN, len(expired))
		for i, e := range expired {
			eans[i] = e.EAN
		}
		files, err := f.files(ctx, eans)
		if err != nil {
			return false, err
		}
		for _, e := range expired {
			if len(f.changes) >= f.limit {
				return false, nil
			}
			f.turned(files[e.EAN], e.EAN, e.At)
			f.at.expired = e
		}
		if len(expired) < feedRows {
			return true, nil
		}
	}
}

// arrivals tells of legal files and readings that arrived, in the order in which
// they did.
func (f *feeding) arrivals(ctx context.Context) (bool, error) {
	for range feedLooks {
		if f.full() {
			return false, nil
		}
		after := f.at.readings
		if f.at.run != wholeRow {
			after.ID = before(after.ID) // the rest of the row there
		}
		readings, nextReadings, noReadings, err := f.s.feed.ArrivedReadings(ctx, f.caller.Supplier(), after, f.horizon, min(f.limit, feedRows))
		if err != nil {
			return false, err
		}
		versions, nextFiles, noFiles, err := f.s.feed.ArrivedFiles(ctx, f.caller.Supplier(), f.at.files, f.horizon, feedFiles)
		if err != nil {
			return false, err
		}
		// Of transactions after this one not all of both is known.
		last := f.horizon
		if !noReadings {
			last = min(last, nextReadings.Arrived)
		}
		if !noFiles {
			last = min(last, nextFiles.Arrived)
		}
		cut, readingsCut := upTo(readings, last, func(r *ArrivedReadings) uint64 { return r.Place.Arrived })
		versionsCut := 0
		readings = readings[:cut]
		cut, versionsCut = upTo(versions, last, func(v *ArrivedFile) uint64 { return v.Place.Arrived })
		versions = versions[:cut]

		var eans []meter.EAN
		for i := range readings {
			eans = append(eans, readings[i].EAN)
		}
		for i := range versions {
			eans = append(eans, versions[i].EAN)
		}
		files, err := f.files(ctx, eans)
		if err != nil {
			return false, err
		}
		for len(readings)+len(versions) > 0 {
			if len(f.changes) >= f.limit {
				return false, nil
			}
			if len(readings) == 0 || len(versions) > 0 && versions[0].Place.Arrived <= readings[0].Place.Arrived {
				f.version(&versions[0], files[versions[0].EAN])
				f.at.files = versions[0].Place
				versions = versions[1:]
				continue
			}
			if !f.batch(&readings[0], files[readings[0].EAN]) {
				return false, nil
			}
			readings = readings[1:]
		}
		f.at.readings, f.at.run, f.at.from = reached(nextReadings, readingsCut, last), wholeRow, 0
		f.at.files = reached(nextFiles, versionsCut, last)
		if noReadings && noFiles {
			return true, nil
		}
	}
	return false, nil
}

// upTo is how many of the rows arrived by a transaction or earlier ones, and how
// many are left out.
func upTo[T any](rows []T, last uint64, arrived func(*T) uint64) (n, left int) {
	for n < len(rows) && arrived(&rows[n]) <= last {
		n++
	}
	return n, len(rows) - n
}

// reached is how far a source was told: to where its rows end, but not beyond
// the transaction after which the other's are not known.
func reached(next FeedPlace, left int, last uint64) FeedPlace {
	if left > 0 || next.Arrived > last {
		return FeedPlace{Arrived: last + 1}
	}
	return next
}

// before is the id before an id.
func before(id [16]byte) [16]byte {
	for i := len(id) - 1; i >= 0; i-- {
		id[i]--
		if id[i] != 0xff {
			break
		}
	}
	return id
}

// version tells of a new version of a legal file, if it changed the caller's own
// bases: what it changed for others is theirs. Both versions are judged at the
// same time, which is not before the new one was sealed, by another's clock.
func (f *feeding) version(v *ArrivedFile, newest *authz.LegalFile) {
	if newest == nil {
		return
	}
	file, err := f.s.legalFile(authz.StoredFile{Version: v.Version, Sealed: v.Sealed, Previous: v.Previous}, v.EAN)
	if err != nil {
		return
	}
	at := f.now
	if file.SealedAt().After(at) {
		at = file.SealedAt()
	}
	var had []meter.Basis
	if v.Previous != nil {
		previous, err := f.s.listedFile(authz.StoredFile{Version: v.Version - 1, Sealed: v.Previous}, v.EAN)
		if err != nil {
			return
		}
		had = f.bases(previous, at)
	}
	if !slices.Equal(had, f.bases(file, at)) {
		f.tellBases(newest, v.EAN, file.SealedAt())
	}
}

// batch tells of readings that arrived, as far as the caller may read now what
// they are for. It says whether there was room for all of it, and notes how far
// it came.
func (f *feeding) batch(r *ArrivedReadings, file *authz.LegalFile) bool {
	run, from := 0, meter.Day(0)
	if f.at.run != wholeRow && r.Place.compare(f.at.readings) == 0 {
		run, from = int(f.at.run), f.at.from
	}
	readable, first := f.readable(r, file), len(f.changes)
	for ; run < len(r.Changed); run, from = run+1, 0 {
		c := &r.Changed[run]
		days := meter.DayRange{From: max(c.Days.From, from), To: c.Days.To}
		for _, part := range sameFields(c.Fields, days, readable) {
			told := f.told(r, c.Corrected, part)
			if n := len(f.changes); n > first && goesOn(&f.changes[n-1], &told) {
				f.changes[n-1].To = told.To // what parted them is not the caller's
				continue
			}
			if len(f.changes) >= f.limit {
				f.at.readings, f.at.run, f.at.from = r.Place, uint16(run), part.Days.From
				return false
			}
			f.changes = append(f.changes, told)
		}
	}
	f.at.readings, f.at.run, f.at.from = r.Place, wholeRow, 0
	return true
}

// goesOn says whether b tells the same of the days that follow on those of a.
func goesOn(a, b *openapi.Change) bool {
	return a.Kind == b.Kind && a.To.Equal(b.From.Time) && slices.Equal(*a.Fields, *b.Fields)
}

func (f *feeding) told(r *ArrivedReadings, corrected bool, part ChangedDays) openapi.Change {
	kind := openapi.ARRIVED
	if corrected {
		kind = openapi.CORRECTED
	}
	names := make([]openapi.FieldName, 0, len(part.Fields))
	for _, code := range part.Fields {
		if field, ok := f.s.profile.FieldByCode(code); ok { // what is readable is in the profile
			names = append(names, field.Name)
		}
	}
	from, to := date(part.Days.From), date(part.Days.To)
	return openapi.Change{Kind: kind, Ean: r.EAN.String(), At: r.At, Fields: &names, From: &from, To: &to}
}

// readable are the stored days that what the caller may read now rests on, by
// field: a dry run says so. It is about whole months, so that those are found
// that are to be had only as such, with the month that a read ends.
func (f *feeding) readable(r *ArrivedReadings, file *authz.LegalFile) map[meter.FieldCode]meter.DaySet {
	if file == nil || len(r.Changed) == 0 {
		return nil
	}
	hull := r.Changed[0].Days
	var fields []meter.FieldCode
	for _, c := range r.Changed {
		hull.From, hull.To = min(hull.From, c.Days.From), max(hull.To, c.Days.To)
		fields = append(fields, c.Fields...)
	}
	slices.Sort(fields)
	around := meter.DayRange{From: (max(hull.From, 1) - 1).Month().First(), To: ((hull.To - 1).Month() + 1).First()}
	period := around.Intersect(authz.Retained(f.s.profile, f.now))
	if period.Empty() {
		return nil
	}
	access, err := authz.DryRun(f.caller, authz.AccessRequest{EAN: r.EAN, Days: period, Fields: slices.Compact(fields)}, file, f.s.profile, f.now)
	if err != nil {
		return nil
	}
	out := map[meter.FieldCode]meter.DaySet{}
	for _, grant := range access.Grants() {
		for _, reads := range grant.Reads() {
			out[reads.Field] = out[reads.Field].Union(reads.Days)
		}
	}
	return out
}

// sameFields parts days into runs of which the same of the fields are readable,
// ascending; those of which none are left out.
func sameFields(fields []meter.FieldCode, days meter.DayRange, readable map[meter.FieldCode]meter.DaySet) []ChangedDays {
	of := make([]meter.DaySet, len(fields))
	var cuts []meter.Day
	for i, field := range fields {
		of[i] = readable[field].Intersect(meter.NewDaySet(days))
		for _, run := range of[i].Ranges() {
			cuts = append(cuts, run.From, run.To)
		}
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	var out []ChangedDays
	for i := 1; i < len(cuts); i++ {
		part := ChangedDays{Days: meter.DayRange{From: cuts[i-1], To: cuts[i]}}
		for j, field := range fields {
			if of[j].Contains(part.Days.From) {
				part.Fields = append(part.Fields, field)
			}
		}
		if len(part.Fields) > 0 {
			out = append(out, part)
		}
	}
	return out
}

// markEvery is how often WatchChanges looks: marks are made once a minute.
const markEvery = 15 * time.Second

// WatchChanges notes, until ctx ends, which transactions are under way, and
// measures how far the feed lags behind.
func (s *Server) WatchChanges(ctx context.Context) {
	tick := time.NewTicker(markEvery)
	defer tick.Stop()
	for {
		s.watchChanges(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Server) watchChanges(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	err := s.feed.MarkChanges(ctx)
	if err == nil {
		var lag time.Duration
		if lag, err = s.feed.ChangesLag(ctx); err == nil {
			s.metrics.changesLag.Set(lag.Seconds())
		}
	}
	if err != nil && ctx.Err() == nil {
		s.log.WarnContext(ctx, "the feed of changes is not watched", "cause", err.Error())
	}
}
