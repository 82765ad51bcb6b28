package postgres

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"kluis/authz"
	"kluis/meter"
)

// The statements of the feed of changes. What arrived is read in the order of
// the transactions that stored it, up to the oldest that is under way: of those
// before it nothing can come any more. So no late commit is missed.
//
// Each looks at $6 rows at most, all suppliers' among them, and stops as soon as
// it has $7 that may be the caller's: the indexes only propose. LIMIT keeps each
// of the inner ones a descent, and the rows in their order.
const (
	queryArrivedReadings = `
		SELECT b.arrived::text, b.ean, uuid_send(b.batch_id), (extract(epoch FROM b.stored_at) * 1000000)::bigint, b.changed
		FROM (
			SELECT arrived, ean, batch_id, stored_at, changed FROM ingest_batch
			WHERE (arrived, ean, batch_id) > ($2::text::xid8, $3::bigint, $4::uuid) AND arrived < $5::text::xid8
			ORDER BY arrived, ean, batch_id LIMIT $6
		) b
		CROSS JOIN LATERAL (
			(SELECT 1 FROM supply_period s WHERE s.gln = $1 AND s.ean = b.ean LIMIT 1)
			UNION ALL
			(SELECT 1 FROM consent c WHERE c.gln = $1 AND c.ean = b.ean LIMIT 1)
			LIMIT 1
		) mine
		ORDER BY b.arrived, b.ean, b.batch_id LIMIT $7`
	// Where such a look at $5 + 1 rows ends.
	queryReadingsEnd = `
		SELECT b.arrived::text, b.ean, uuid_send(b.batch_id) FROM ingest_batch b
		WHERE (b.arrived, b.ean, b.batch_id) > ($1::text::xid8, $2::bigint, $3::uuid) AND b.arrived < $4::text::xid8
		ORDER BY b.arrived, b.ean, b.batch_id OFFSET $5 LIMIT 1`
	// Who a legal file is about is in it, $1 is the GLN as it is written there:
	// also who was removed from it is found, whom no index has any more. That
	// these bytes are found proves nothing.
	queryArrivedFiles = `
		SELECT f.arrived::text, f.ean, f.version, f.file, p.file
		FROM (
			SELECT arrived, ean, version, file FROM legal_file
			WHERE (arrived, ean, version) > ($2::text::xid8, $3::bigint, $4::bigint) AND arrived < $5::text::xid8
			ORDER BY arrived, ean, version LIMIT $6
		) f
		LEFT JOIN LATERAL (SELECT file FROM legal_file o WHERE o.ean = f.ean AND o.version = f.version - 1 LIMIT 1) p ON true
		WHERE position($1::bytea IN f.file) > 0 OR position($1::bytea IN coalesce(p.file, '')) > 0
		ORDER BY f.arrived, f.ean, f.version LIMIT $7`
	queryFilesEnd = `
		SELECT f.arrived::text, f.ean, f.version FROM legal_file f
		WHERE (f.arrived, f.ean, f.version) > ($1::text::xid8, $2::bigint, $3::bigint) AND f.arrived < $4::text::xid8
		ORDER BY f.arrived, f.ean, f.version OFFSET $5 LIMIT 1`
	queryBasisDays = `
		SELECT DISTINCT p.ean FROM unnest($2::int[]) AS d (day)
		CROSS JOIN LATERAL (
			SELECT b.ean FROM basis_day b WHERE b.gln = $1 AND b.day = DATE '1970-01-01' + d.day AND b.ean > $3 ORDER BY b.ean LIMIT $4
		) p
		ORDER BY p.ean LIMIT $4`
	queryExpired = `
		SELECT (extract(epoch FROM valid_until) * 1000000)::bigint, ean, uuid_send(consent_id) FROM consent
		WHERE gln = $1 AND state = 2 AND (valid_until, ean, consent_id) > (TIMESTAMPTZ 'epoch' + $2::bigint * INTERVAL '1 microsecond', $3::bigint, $4::uuid)
		  AND valid_until <= TIMESTAMPTZ 'epoch' + $5::bigint * INTERVAL '1 microsecond'
		ORDER BY valid_until, ean, consent_id LIMIT $6`
	queryMarkAt    = `SELECT oldest::text FROM change_mark WHERE at <= TIMESTAMPTZ 'epoch' + $1::bigint * INTERVAL '1 microsecond' ORDER BY at DESC, next DESC LIMIT 1`
	execChangeMark = `INSERT INTO change_mark (one) SELECT true WHERE NOT EXISTS (SELECT FROM change_mark WHERE at > now() - INTERVAL '55 seconds') ON CONFLICT DO NOTHING`
	queryMarkLag   = `
		SELECT (extract(epoch FROM now() - coalesce(
			(SELECT at FROM change_mark WHERE next <= pg_snapshot_xmin(pg_current_snapshot()) ORDER BY at DESC, next DESC LIMIT 1),
			(SELECT at FROM change_mark ORDER BY at, next LIMIT 1), now())) * 1000000)::bigint`

	execNoBasisDays = `DELETE FROM basis_day WHERE ean = $1`
	execBasisDays   = `INSERT INTO basis_day (gln, day, ean) SELECT gln, DATE '1970-01-01' + day, $1 FROM unnest($2::bigint[], $3::int[]) AS d (gln, day)`
)

const (
	// MaxBatchesLooked and MaxFilesLooked bound one look for what arrived, of
	// whomever: an index entry and two descents each, or a legal file.
	MaxBatchesLooked = 20000
	MaxFilesLooked   = 2000
)

// changeStatements are those of a Gateway.
type changeStatements struct {
	readings, readingsEnd, files, filesEnd, days, expired, horizon, mark, markAt, lag *sqlx.Stmt
}

func (c *changeStatements) all() map[**sqlx.Stmt]string {
	return map[**sqlx.Stmt]string{
		&c.readings:    queryArrivedReadings,
		&c.readingsEnd: queryReadingsEnd,
		&c.files:       queryArrivedFiles,
		&c.filesEnd:    queryFilesEnd,
		&c.days:        queryBasisDays,
		&c.expired:     queryExpired,
		&c.horizon:     queryHorizon,
		&c.mark:        execChangeMark,
		&c.markAt:      queryMarkAt,
		&c.lag:         queryMarkLag,
	}
}

// FeedPlace is a place in the order of arrival, after a row.
type FeedPlace struct {
	Arrived uint64 // transaction
	EAN     int64
	ID      [16]byte // of a batch
	Version int64    // of a legal file
}

// Changed is what a batch changed: days of fields that it stored for the first
// time, or a later version of.
type Changed struct {
	Corrected bool
	Fields    []meter.FieldCode // ascending
	Days      meter.DayRange
}

// ArrivedReadings is what a batch stored of a metering point.
type ArrivedReadings struct {
	Place   FeedPlace
	EAN     meter.EAN
	At      time.Time // of storing, UTC
	Changed []Changed // ascending by first day
}

// ArrivedFile is a version of a legal file.
type ArrivedFile struct {
	Place            FeedPlace
	EAN              meter.EAN
	Version          uint64
	Sealed, Previous []byte
}

// Expired is a consent that the index says expired.
type Expired struct {
	At  time.Time // UTC
	EAN meter.EAN
	ID  [16]byte
}

// FeedHorizon returns the oldest transaction under way, before which all that
// there will ever be is there, and the one that comes next.
func (g *Gateway) FeedHorizon(ctx context.Context) (oldest, next uint64, err error) {
	const op = "horizon"
	var a, b string
	if err := g.changes.horizon.QueryRowxContext(ctx).Scan(&a, &b); err != nil {
		return 0, 0, wrap(ctx, op, err)
	}
	oldest, err = strconv.ParseUint(a, 10, 64)
	if err == nil {
		next, err = strconv.ParseUint(b, 10, 64)
	}
	return oldest, next, wrap(ctx, op, err)
}

// FeedSince returns a transaction such that whatever was committed after a
// moment was by it or a later one; 1 of a time of which nothing is known.
func (g *Gateway) FeedSince(ctx context.Context, at time.Time) (uint64, error) {
	const op = "transactions since"
	var s string
	err := g.changes.markAt.QueryRowxContext(ctx, at.UnixMicro()).Scan(&s)
	if errors.Is(err, sql.ErrNoRows) {
		return 1, nil
	}
	if err != nil {
		return 0, wrap(ctx, op, err)
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return n, wrap(ctx, op, err)
}

// MarkChanges notes, once a minute, which transactions are under way.
func (g *Gateway) MarkChanges(ctx context.Context) error {
	_, err := g.changes.mark.ExecContext(ctx)
	return wrap(ctx, "mark of changes", err)
}

// ChangesLag is how long ago the newest mark was made of which all transactions
// have ended: so old is the newest change that may not be told yet. Up to a good
// minute as a rule.
func (g *Gateway) ChangesLag(ctx context.Context) (time.Duration, error) {
	var n int64
	err := g.changes.lag.GetContext(ctx, &n)
	return time.Duration(max(n, 0)) * time.Microsecond, wrap(ctx, "lag of changes", err)
}

// ArrivedReadings returns up to limit batches that follow a place in the order
// of arrival, before the horizon, of metering points that an index connects with
// the supplier. done: there are no more. Else next is where to go on: the place
// of the last one, or, when so many of others were looked at, a later one.
func (g *Gateway) ArrivedReadings(ctx context.Context, gln meter.GLN, after FeedPlace, horizon uint64, limit int) (out []ArrivedReadings, next FeedPlace, done bool, err error) {
	const op = "arrived readings"
	at, id, end := strconv.FormatUint(after.Arrived, 10), uuid.UUID(after.ID).String(), strconv.FormatUint(horizon, 10)
	rows, err := g.changes.readings.QueryxContext(ctx, gln.Int64(), at, after.EAN, id, end, MaxBatchesLooked, limit)
	if err != nil {
		return nil, next, false, wrap(ctx, op, err)
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		n++
		var arrived string
		var batch, changed sql.RawBytes
		var stored int64
		var r ArrivedReadings
		err := rows.Scan(&arrived, &r.Place.EAN, &batch, &stored, &changed)
		if err == nil {
			r.Place.Arrived, err = strconv.ParseUint(arrived, 10, 64)
		}
		if err != nil {
			return nil, next, false, wrap(ctx, op, err)
		}
		copy(r.Place.ID[:], batch)
		next, r.At = r.Place, time.UnixMicro(stored).UTC()
		// What cannot be read was not written by ingest, and tells nothing.
		if r.EAN, err = meter.EANFromInt64(r.Place.EAN); err != nil {
			continue
		}
		if r.Changed, err = parseChanged(changed); err == nil && len(r.Changed) > 0 {
			out = append(out, r)
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, next, false, wrap(ctx, op, err)
	}
	if n == limit {
		return out, next, false, nil
	}
	var arrived string
	var batch []byte
	p := FeedPlace{}
	err = g.changes.readingsEnd.QueryRowxContext(ctx, at, after.EAN, id, end, MaxBatchesLooked-1).Scan(&arrived, &p.EAN, &batch)
	if err == nil {
		copy(p.ID[:], batch)
	}
	done, err = ended(ctx, op, &p, arrived, horizon, err)
	return out, p, done, err
}

// ended is where a look at rows ended: at a row, or, without one, at the
// horizon.
func ended(ctx context.Context, op string, p *FeedPlace, arrived string, horizon uint64, err error) (bool, error) {
	if errors.Is(err, sql.ErrNoRows) {
		*p = FeedPlace{Arrived: horizon}
		return true, nil
	}
	if err == nil {
		p.Arrived, err = strconv.ParseUint(arrived, 10, 64)
	}
	return false, wrap(ctx, op, err)
}

// ArrivedFiles does the same for versions of legal files in which, or in the
// version before, the supplier may be named.
func (g *Gateway) ArrivedFiles(ctx context.Context, gln meter.GLN, after FeedPlace, horizon uint64, limit int) (out []ArrivedFile, next FeedPlace, done bool, err error) {
	const op = "arrived legal files"
	at, end := strconv.FormatUint(after.Arrived, 10), strconv.FormatUint(horizon, 10)
	named := binary.BigEndian.AppendUint64(nil, uint64(gln.Int64()))
	rows, err := g.changes.files.QueryxContext(ctx, named, at, after.EAN, after.Version, end, MaxFilesLooked, limit)
	if err != nil {
		return nil, next, false, wrap(ctx, op, err)
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		n++
		var arrived string
		var f ArrivedFile
		err := rows.Scan(&arrived, &f.Place.EAN, &f.Place.Version, &f.Sealed, &f.Previous)
		if err == nil {
			f.Place.Arrived, err = strconv.ParseUint(arrived, 10, 64)
		}
		if err != nil {
			return nil, next, false, wrap(ctx, op, err)
		}
		next, f.Version = f.Place, uint64(f.Place.Version)
		if f.EAN, err = meter.EANFromInt64(f.Place.EAN); err == nil {
			out = append(out, f)
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, next, false, wrap(ctx, op, err)
	}
	if n == limit {
		return out, next, false, nil
	}
	var arrived string
	p := FeedPlace{}
	err = g.changes.filesEnd.QueryRowxContext(ctx, at, after.EAN, after.Version, end, MaxFilesLooked-1).Scan(&arrived, &p.EAN, &p.Version)
	done, err = ended(ctx, op, &p, arrived, horizon, err)
	return out, p, done, err
}

// BasisDays returns metering points of which, by the index, something begins or
// ends for the supplier on one of the days: ascending, above after, at most
// limit.
func (g *Gateway) BasisDays(ctx context.Context, gln meter.GLN, days []meter.Day, after meter.EAN, limit int) ([]meter.EAN, error) {
	const op = "days of bases"
	numbers := make([]int64, len(days))
	for i, d := range days {
		numbers[i] = int64(d)
	}
	var out []meter.EAN
	for last := after.Int64(); len(out) < limit; {
		var found []int64
		want := limit - len(out)
		if err := g.changes.days.SelectContext(ctx, &found, gln.Int64(), pq.Array(numbers), last, want); err != nil {
			return nil, wrap(ctx, op, err)
		}
		for _, n := range found {
			last = n
			if ean, err := meter.EANFromInt64(n); err == nil { // else put there by hand
				out = append(out, ean)
			}
		}
		if len(found) < want {
			break
		}
	}
	return out, nil
}

// ExpiredConsents returns consents of the supplier that, by the index, expired
// up to a moment: in that order, those that follow one, at most limit.
func (g *Gateway) ExpiredConsents(ctx context.Context, gln meter.GLN, after Expired, until time.Time, limit int) ([]Expired, error) {
	const op = "expired consents"
	var out []Expired
	for last, ean := after, after.EAN.Int64(); len(out) < limit; {
		want, n := limit-len(out), 0
		rows, err := g.changes.expired.QueryxContext(ctx, gln.Int64(), last.At.UnixMicro(), ean, uuid.UUID(last.ID).String(), until.UnixMicro(), want)
		if err != nil {
			return nil, wrap(ctx, op, err)
		}
		for rows.Next() {
			n++
			var at int64
			var id sql.RawBytes
			if err := rows.Scan(&at, &ean, &id); err != nil {
				return nil, errors.Join(wrap(ctx, op, err), wrap(ctx, op, rows.Close()))
			}
			last = Expired{At: time.UnixMicro(at).UTC()}
			copy(last.ID[:], id)
			if last.EAN, err = meter.EANFromInt64(ean); err == nil {
				out = append(out, last)
			}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return nil, wrap(ctx, op, err)
		}
		if n < want {
			break
		}
	}
	return out, nil
}

// indexBasisDays makes the index of days say what a legal file says: for each
// supplier the first and last days of its own supply and consents, and those of
// occupancies and opt-outs that lie between.
func indexBasisDays(ctx context.Context, tx *sqlx.Tx, f *authz.LegalFile) error {
	ean := f.EAN().Int64()
	if _, err := tx.ExecContext(ctx, execNoBasisDays, ean); err != nil {
		return err
	}
	glns, days := basisDays(f)
	if len(glns) == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, execBasisDays, ean, pq.Array(glns), pq.Array(days))
	return err
}

func basisDays(f *authz.LegalFile) (glns, days []int64) {
	own := map[meter.GLN][]meter.DayRange{}
	for _, s := range f.SupplyPeriods() {
		own[s.Supplier] = append(own[s.Supplier], s.Days)
	}
	for _, c := range f.Consents() {
		own[c.Supplier] = append(own[c.Supplier], c.Days)
	}
	var of []meter.DayRange
	for _, o := range f.Occupancies() {
		of = append(of, o.Days)
	}
	of = append(of, f.OptOuts()...)
	for gln, ranges := range own {
		hull := ranges[0]
		for _, r := range ranges {
			hull.From, hull.To = min(hull.From, r.From), max(hull.To, r.To)
		}
		var mine []meter.Day
		for _, r := range slices.Concat(ranges, of) {
			for _, d := range []meter.Day{r.From, r.To} {
				if d >= hull.From && d <= hull.To && d != meter.MaxDay {
					mine = append(mine, d)
				}
			}
		}
		slices.Sort(mine)
		for _, d := range slices.Compact(mine) {
			glns, days = append(glns, gln.Int64()), append(days, int64(d))
		}
	}
	return glns, days
}

// What a batch changed of a metering point is, one after the other, ascending by
// first day:
//
//	1 new, 2 corrected (1 byte), first day since 1970 (4), number of days (2),
//	number of fields (1), their codes (2 each, ascending)
//
// all big endian: the days of a run have the same fields.
const (
	changedNew       = 1
	changedCorrected = 2
)

// changedOf says what rows of one metering point change.
func changedOf(rows []Row) []Changed {
	type key struct {
		day       meter.Day
		corrected bool
	}
	fields := map[key][]meter.FieldCode{}
	for _, r := range rows {
		k := key{r.Day, r.Version > 1}
		fields[k] = append(fields[k], r.Field)
	}
	keys := make([]key, 0, len(fields))
	for k := range fields {
		slices.Sort(fields[k])
		fields[k] = slices.Compact(fields[k])
		keys = append(keys, k)
	}
	order := func(corrected bool) int {
		if corrected {
			return 1
		}
		return 0
	}
	slices.SortFunc(keys, func(a, b key) int {
		return cmp.Or(cmp.Compare(order(a.corrected), order(b.corrected)), cmp.Compare(a.day, b.day))
	})
	var out []Changed
	for _, k := range keys {
		if n := len(out); n > 0 {
			if l := &out[n-1]; l.Corrected == k.corrected && l.Days.To == k.day && l.Days.Len() < 0xffff && slices.Equal(l.Fields, fields[k]) {
				l.Days.To++
				continue
			}
		}
		out = append(out, Changed{k.corrected, fields[k], meter.DayRange{From: k.day, To: k.day + 1}})
	}
	slices.SortStableFunc(out, func(a, b Changed) int { return cmp.Compare(a.Days.From, b.Days.From) })
	return out
}

func encodeChanged(changed []Changed) []byte {
	b := []byte{} // not null
	for _, c := range changed {
		kind := byte(changedNew)
		if c.Corrected {
			kind = changedCorrected
		}
		b = append(b, kind)
		b = binary.BigEndian.AppendUint32(b, uint32(c.Days.From))
		b = binary.BigEndian.AppendUint16(b, uint16(c.Days.Len()))
		b = append(b, byte(len(c.Fields)))
		for _, f := range c.Fields {
			b = binary.BigEndian.AppendUint16(b, uint16(f))
		}
	}
	return b
}

var errChanged = errors.New("postgres: not what ingest writes of a batch")

// parseChanged reads what encodeChanged wrote, and nothing else.
func parseChanged(b []byte) ([]Changed, error) {
	var out []Changed
	for len(b) > 0 {
		if len(b) < 8 || b[0] != changedNew && b[0] != changedCorrected || b[7] == 0 || len(b) < 8+2*int(b[7]) {
			return nil, errChanged
		}
		from, n := binary.BigEndian.Uint32(b[1:]), binary.BigEndian.Uint16(b[5:])
		c := Changed{Corrected: b[0] == changedCorrected, Days: meter.DayRange{From: meter.Day(from), To: meter.Day(from) + meter.Day(n)}}
		if from > maxChangedDay || n == 0 || len(out) > 0 && out[len(out)-1].Days.From > c.Days.From {
			return nil, errChanged
		}
		for i := range int(b[7]) {
			f := meter.FieldCode(binary.BigEndian.Uint16(b[8+2*i:]))
			if i > 0 && f <= c.Fields[i-1] {
				return nil, errChanged
			}
			c.Fields = append(c.Fields, f)
		}
		out, b = append(out, c), b[8+2*int(b[7]):]
	}
	return out, nil
}

// maxChangedDay is in the year 9999.
const maxChangedDay = 2932896

// changedColumn is what is stored of a batch, by metering point.
func changedColumn(eans []int64, rows []Row) ([][]byte, error) {
	of := make(map[int64][]Row, len(eans))
	for _, r := range rows {
		of[r.EAN.Int64()] = append(of[r.EAN.Int64()], r)
	}
	out := make([][]byte, len(eans))
	for i, ean := range eans {
		changed := changedOf(of[ean])
		for _, c := range changed {
			if len(c.Fields) > 0xff || c.Days.From < 0 || c.Days.From > maxChangedDay {
				return nil, fmt.Errorf("postgres: store batch: %d fields of a day, or a day that cannot be", len(c.Fields))
			}
		}
		out[i] = encodeChanged(changed)
	}
	return out, nil
}
