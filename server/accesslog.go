package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"
	openapi_types "github.com/oapi-codegen/runtime/types"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
)

// AccessLog reads back what a Recorder keeps. An error means that the database
// did not serve.
type AccessLog interface {
	// AccessLog returns at most limit rows of a metering point, latest first:
	// those that follow a place, and were recorded at since or later; and whether
	// there are more. Rows that are large come in smaller numbers, so that none
	// can fill the memory; if there are more, one comes at least.
	AccessLog(ctx context.Context, ean meter.EAN, after LogPlace, since time.Time, limit int) (rows []LogRow, more bool, err error)
	// Suppliers returns the current sealed records of parties; of who has none,
	// none.
	Suppliers(ctx context.Context, glns []meter.GLN) (map[meter.GLN][]byte, error)
}

// LogPlace is a place between the rows of a metering point: after the row of an
// interaction, recorded at a time. With a zero Interaction it is before all
// rows of that time.
type LogPlace struct {
	At          time.Time // UTC, microseconds
	Interaction [16]byte
}

// LogRow is a row of the access log as it is stored.
type LogRow struct {
	Place           LogPlace
	Record, Receipt []byte
}

const (
	// maxStatement is how many reads a statement or a table holds.
	maxStatement = 10_000
	// maxFolded is how many lines of all else it holds.
	maxFolded = 5_000
	// logBatch is how many rows are fetched at once.
	logBatch = 500
	// logSkew is how far the time at which a request was decided, by a gateway's
	// clock, may lie from that at which it was recorded, by the database's, or
	// sealed, by a cryptoserver's. The log is ordered by the second; days are
	// those of the first.
	logSkew = 10 * time.Minute
	// maxLogged bounds what one request leaves in the log of records that do not
	// verify; the answer lists them all.
	maxLogged = 20
)

// forever is later than any record.
var forever = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// logBounds bound one answer: its entries, and what is looked at and held for
// it. What does not fit is in the next one.
type logBounds struct {
	entries int // with folding: of reads
	folded  int // lines of all else; 0: nothing is folded
	rows    int // read, shown or not
	runs    int // of days granted or withheld, of all entries
}

func pageBounds(limit int) logBounds { return logBounds{entries: limit, rows: 10_000, runs: 20_000} }
func statementBounds() logBounds {
	return logBounds{entries: maxStatement, folded: maxFolded, rows: 1_000_000, runs: 100_000}
}

// logParams are the parameters of getAccessLog as text; empty: not given.
type logParams struct{ ean, from, to, occupancy, supplier, lang, cursor, limit string }

func boundLogParams(r openapi.GetAccessLogRequestObject) logParams {
	p := logParams{ean: r.Ean}
	for _, d := range []struct {
		to   *string
		from *openapi_types.Date
	}{{&p.from, r.Params.From}, {&p.to, r.Params.To}, {&p.occupancy, r.Params.Occupancy}} {
		if d.from != nil {
			*d.to = d.from.String()
		}
	}
	if r.Params.Supplier != nil {
		p.supplier = *r.Params.Supplier
	}
	if r.Params.Lang != nil {
		p.lang = string(*r.Params.Lang)
	}
	if r.Params.Cursor != nil {
		p.cursor = *r.Params.Cursor
	}
	if r.Params.Limit != nil {
		p.limit = strconv.Itoa(*r.Params.Limit)
	}
	return p
}

// logQuery is a request for the access log understood.
type logQuery struct {
	sent      logParams
	media     string // of the answer; "" when Accept allows none
	ean       meter.EAN
	days      meter.DayRange // on which the requests were made
	occupancy meter.Day
	chosen    bool      // occupancy was said
	supplier  meter.GLN // zero: everybody
	after     LogPlace
	limit     int
}

func (p logParams) parse(media string, loc *time.Location) (logQuery, paramErrors) {
	q := logQuery{sent: p, media: media, days: meter.DayRange{To: meter.MaxDay}, after: LogPlace{At: forever}, limit: defaultLimit}
	var errs paramErrors
	var err error
	if q.ean, err = meter.ParseEAN(p.ean); err != nil {
		errs.add("/path/ean", wantEAN)
	}
	day := func(name, s string, d *meter.Day) bool {
		if s == "" {
			return false
		}
		v, err := meter.ParseDay(s)
		if err != nil {
			errs.add("/query/"+name, wantDay)
			return false
		}
		*d = v
		return true
	}
	day("from", p.from, &q.days.From)
	if day("to", p.to, &q.days.To) {
		q.after.At = q.days.To.Start(loc).Add(logSkew).UTC()
		if q.days.Empty() {
			errs.add("/query/to", "must be later than from")
		}
	}
	q.chosen = day("occupancy", p.occupancy, &q.occupancy)
	if p.supplier != "" {
		if q.supplier, err = meter.ParseGLN(p.supplier); err != nil {
			errs.add("/query/supplier", wantGLN)
		}
	}
	if p.lang != "" && words[p.lang] == nil {
		errs.add("/query/lang", "must be one of nl, en")
	}
	if p.cursor != "" {
		if q.after, err = decodeLogCursor(p.cursor); err != nil {
			errs.add("/query/cursor", wantCursor)
		}
	}
	if p.limit != "" {
		if q.limit, err = strconv.Atoi(p.limit); err != nil || q.limit < 10 || q.limit > 1000 {
			errs.add("/query/limit", "must be an integer from 10 to 1000")
		}
	}
	if media == mediaHTML || media == mediaCSV {
		if p.limit != "" {
			errs.add("/query/limit", "must be given for application/json only: other media types hold as much as there is room for")
		}
	}
	if len(errs) > 0 {
		slices.SortStableFunc(errs, func(a, b openapi.ParameterError) int { return strings.Compare(a.Pointer, b.Pointer) })
		return logQuery{}, errs
	}
	return q, nil
}

// checkAccessLog finds the faults of a getAccessLog request that the contract
// cannot say.
func checkAccessLog(s *Server, r *http.Request) paramErrors {
	q := r.URL.Query()
	_, errs := logParams{
		ean: chi.URLParam(r, "ean"), from: q.Get("from"), to: q.Get("to"), occupancy: q.Get("occupancy"), supplier: q.Get("supplier"),
		lang: q.Get("lang"), cursor: q.Get("cursor"), limit: q.Get("limit"),
	}.parse(callOf(r.Context()).media, s.profile.Location())
	return errs
}

// GetAccessLog answers GET /v1/metering-points/{ean}/access-log.
func (s *Server) GetAccessLog(ctx context.Context, r openapi.GetAccessLogRequestObject) (openapi.GetAccessLogResponseObject, error) {
	c := callOf(ctx)
	q, errs := boundLogParams(r).parse(c.media, s.profile.Location())
	if len(errs) > 0 {
		return nil, failParams(errs)
	}
	d, err := s.accessLog(ctx, c, q)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// accessLog takes a request from the legal file, which says whose days are
// whose, to the committed record. Nothing of the log leaves before.
func (s *Server) accessLog(ctx context.Context, c *call, q logQuery) (*document, error) {
	now := s.now()
	rec := s.newRecord(ctx, c.caller, now)
	rec.Operation, rec.EAN, rec.Profile = audit.AccessLog, q.ean, s.profile.Digest()
	if c.caller.Employee() == nil { // the contract's table says so too
		return nil, fail(notPermitted, errors.New("an access log is for employees"))
	}
	if err := s.onErrand(ctx, c, rec); err != nil {
		return nil, err
	}
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

	v := &logView{profile: s.profile, file: file, asOf: now, occupancy: occupancy, query: q, bounds: pageBounds(q.limit)}
	if q.media != mediaJSON {
		v.bounds = statementBounds()
	}
	v.late = halfOf(ctx)
	if err := v.collect(ctx, s.accesses); err != nil {
		return nil, s.recordFailure(ctx, rec, fail(databaseUnavailable, fmt.Errorf("access log: %w", err)))
	}
	s.metrics.evidence.WithLabelValues("access_record").Add(float64(len(v.unreadable)))
	for _, id := range v.unreadable[:min(len(v.unreadable), maxLogged)] {
		s.log.LogAttrs(ctx, slog.LevelError, "access record does not verify", slog.String("interactionId", eventOf(ctx).interaction.String()), slog.String("record", id.String()))
	}
	if err := s.nameCallers(ctx, v); err != nil {
		return nil, s.recordFailure(ctx, rec, fail(databaseUnavailable, fmt.Errorf("supplier records: %w", err)))
	}
	d, err := s.renderLog(ctx, c, v, now)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fmt.Errorf("rendering an access log: %w", err))
	}
	rec.Outcome, rec.Days = audit.Given, occupancy.Days
	if err := s.record(ctx, rec); err != nil {
		return nil, err
	}
	return d, nil
}

const wantOccupancy = "must be the first day of an occupancy of this metering point; it may be absent only while somebody lives there"

// occupancyOf finds the customer's time at the metering point.
func occupancyOf(f *authz.LegalFile, q logQuery, today meter.Day) (authz.Occupancy, bool) {
	if !q.chosen {
		return f.OccupancyAt(today)
	}
	o, ok := f.OccupancyAt(q.occupancy)
	return o, ok && o.Days.From == q.occupancy
}

// nameCallers gives callers their names: those of their sealed records, as far
// as these verify.
func (s *Server) nameCallers(ctx context.Context, v *logView) error {
	var glns []meter.GLN
	for i := range v.entries {
		if gln := v.entries[i].supplier; !slices.Contains(glns, gln) {
			glns = append(glns, gln)
		}
	}
	if len(glns) == 0 {
		return nil
	}
	records, err := s.accesses.Suppliers(ctx, glns)
	if err != nil {
		return err
	}
	names := make(map[meter.GLN]string, len(records))
	for gln, sealed := range records {
		record, err := s.seals.Supplier(sealed)
		if err != nil || record.GLN() != gln {
			s.metrics.evidence.WithLabelValues("supplier").Inc()
			continue
		}
		names[gln] = record.Name()
	}
	for i := range v.entries {
		if name, ok := names[v.entries[i].supplier]; ok {
			v.entries[i].Caller.Name = &name
		}
	}
	return nil
}

// logView is what the customer of an occupancy is shown of the access log.
//
// A request is the customer's to see when it concerns the occupancy:
//   - Readings, and a dry run, that asked for days of which one or more belong
//     to it: no matter who asked, when, and what came of it.
//   - A step of a consent, or a look at it, whose consent a customer of this
//     occupancy was asked for or gave.
//   - An access log told, of days that belong to it.
//   - Anything else (a step that made or found no consent, a look at all
//     consents, at the connection or for it, an access log refused) made on a
//     day that belongs to it.
//
// Days asked for and granted are cut to the occupancy. What is cut off, and all
// other requests, are another customer's. The read at the start of a day on
// which customers change is both the last of the one and the first of the
// other, and counts with the days asked for.
//
// What is said of a request follows from the customer's own days as well
// (accesslog_own.go): of who had to do with another customer only, the customer
// learns no more than of a stranger.
type logView struct {
	profile   *meter.Profile
	file      *authz.LegalFile
	asOf      time.Time // when the file was read, or before
	occupancy authz.Occupancy
	query     logQuery
	bounds    logBounds

	// late says that a log is long enough for one answer; nil: never.
	late func() bool

	entries    []logEntry
	own        int             // how many entries are one request each, and stay so
	folds      map[foldKey]int // the others, by what they have in common
	unreadable []openapi_types.UUID
	next       *LogPlace // where to go on; nil: that was all
}

// halfOf says when half of the time a request has is gone: the rest is for
// rendering and recording.
func halfOf(ctx context.Context) func() bool {
	end, ok := ctx.Deadline()
	if !ok {
		return nil
	}
	half := time.Until(end) / 2
	return func() bool { return time.Until(end) < half }
}

// room says whether there is room for another line of reads, or of all else.
func (v *logView) room(read bool) bool {
	others := len(v.entries) - v.own + len(v.unreadable)
	switch {
	case v.bounds.folded == 0:
		return v.own+others < v.bounds.entries
	case read:
		return v.own < v.bounds.entries
	}
	return others < v.bounds.folded
}

// collect reads the log, latest first, until an answer is full, or has taken
// long enough: then it says where to go on. A line that is folded ends there too, and
// the next answer has one for the requests that follow.
func (v *logView) collect(ctx context.Context, log AccessLog) error {
	loc := v.profile.Location()
	since := time.Unix(0, 0).UTC()
	if v.query.days.From > 0 {
		since = v.query.days.From.Start(loc).Add(-logSkew).UTC()
	}
	after, rows, runs := v.query.after, 0, 0
	told := after // the place of the last row that is this customer's to see
	for {
		batch, more, err := log.AccessLog(ctx, v.query.ean, after, since, logBatch)
		if err != nil {
			return err
		}
		for i := range batch {
			if runs >= v.bounds.runs {
				v.next = &told
				return nil
			}
			if rows >= v.bounds.rows {
				v.next = &after
				return nil
			}
			e, concerned, err := v.entry(&batch[i])
			fits, n := true, 0
			if err != nil {
				if fits = v.room(false); fits {
					v.unreadable = append(v.unreadable, batch[i].Place.Interaction)
				}
			} else if concerned {
				n, fits = v.add(e)
			}
			if !fits {
				v.next = &told // and not among requests of another's
				return nil
			}
			rows++
			runs += n
			if after = batch[i].Place; err != nil || concerned {
				told = after
			}
		}
		if !more {
			return nil
		}
		if v.late != nil && v.late() {
			v.next = &after
			return nil
		}
	}
}

var errUnreadable = errors.New("not what a gateway records")

// entry reads a row, and says whether it is one of those asked for. An error:
// the row is not what a gateway records, so that it cannot be said whom it
// concerns.
func (v *logView) entry(row *LogRow) (logEntry, bool, error) {
	rec, err := audit.Parse(row.Record, row.Receipt)
	if err != nil {
		return logEntry{}, false, err
	}
	if rec.InteractionID != row.Place.Interaction || rec.EAN != v.file.EAN() {
		return logEntry{}, false, errUnreadable
	}
	opened := 0
	if len(rec.Receipt) > 0 {
		rc, err := rec.Opening()
		if err != nil {
			return logEntry{}, false, errUnreadable
		}
		opened = int(rc.Opened)
	}
	if rec.Operation == audit.ConsentStep && rec.Outcome == audit.Given {
		if rec.FileVersion > v.file.Version() && row.Place.At.After(v.asOf.Add(-logSkew)) {
			return logEntry{}, false, nil // taken since the file was read: shown the next time
		}
		if c, ok := v.file.Consent(rec.ConsentID); !ok || !tookStep(&c, &rec) {
			return logEntry{}, false, errUnreadable
		}
	}
	e := logEntry{supplier: rec.Supplier, requests: 1, first: rec.At}
	e.InteractionId, e.At = rec.InteractionID, rec.At
	granted, own, err := v.granted(&rec)
	if err != nil {
		return logEntry{}, false, err
	}
	withheld, err := v.withheld(&rec)
	if err != nil {
		return logEntry{}, false, err
	}
	outcome := v.outcome(&rec, own > 0, len(withheld) > 0)
	if e.Operation, e.Outcome, err = wordsOf(rec.Operation, outcome); err != nil {
		return logEntry{}, false, err
	}
	e.Granted, e.Withheld = []openapi.AccessLogGranted{}, []openapi.Withheld{} // [] and not null
	if outcome == audit.Given || outcome == audit.Partly || outcome == audit.Unchanged {
		e.Granted = append(e.Granted, granted...)
	}
	if outcome == audit.Partly || outcome == audit.Withheld {
		e.Withheld = append(e.Withheld, withheld...)
	}
	// The receipt's number is of the whole request. Where that named days of
	// others, it would tell how much of it was theirs. A name and address are of
	// no days.
	if e.Opened = own; rec.Days.Empty() || rec.Days.Intersect(v.occupancy.Days) == rec.Days || len(rec.Receipt) == 0 {
		e.Opened = opened
	}
	e.reasons = reasonsOf(e.Withheld)
	e.Caller.Gln = rec.Supplier.String()
	if rec.Employee != "" {
		e.Caller.Employee, e.Caller.Reason = &rec.Employee, &rec.Reason
	}
	if rec.Purpose != 0 {
		p := openapi.Purpose(rec.Purpose.String())
		e.Purpose = &p
	}
	if rec.Operation == audit.Readings || rec.Operation == audit.DryRun {
		asked := rec.Days.Intersect(v.occupancy.Days)
		from, to := date(asked.From), date(asked.To)
		e.From, e.To = &from, &to
	}
	if !rec.AsOf.IsZero() {
		e.AsOf = &rec.AsOf
	}
	if rec.ConsentID != [16]byte{} {
		id := openapi_types.UUID(rec.ConsentID)
		e.ConsentId = &id
	}
	if rec.Action != 0 {
		step := openapi.AccessLogEntryStep(steps[rec.Action])
		e.Step = &step
	}
	made := meter.DayOf(rec.At, v.profile.Location())
	wanted := v.query.days.Contains(made) && (v.query.supplier.IsZero() || v.query.supplier == rec.Supplier)
	return e, wanted && v.concerns(&rec, made), nil
}

// concerns says whether a request is the customer's to see; made is the day it
// was made on.
func (v *logView) concerns(rec *audit.Record, made meter.Day) bool {
	switch rec.Operation {
	case audit.Readings, audit.DryRun:
		return !rec.Days.Intersect(v.occupancy.Days).Empty()
	case audit.AccessLog:
		if !rec.Days.Empty() {
			return !rec.Days.Intersect(v.occupancy.Days).Empty()
		}
	case audit.Consents, audit.ConsentStep:
		if c, ok := v.file.Consent(rec.ConsentID); ok {
			return v.theirs(&c)
		}
	}
	return v.occupancy.Days.Contains(made)
}

// steps are the contract's words.
var steps = map[authz.ConsentAction]string{
	authz.ActionRegister: "REGISTER", authz.ActionGrant: "GRANT", authz.ActionReject: "REJECT", authz.ActionRevoke: "REVOKE", authz.ActionRequest: "REQUEST",
}

// wordsOf says in the contract's words what was asked, and what came of it.
func wordsOf(op audit.Operation, came audit.Outcome) (openapi.AccessLogEntryOperation, openapi.AccessLogEntryOutcome, error) {
	operation, ok := map[audit.Operation]openapi.AccessLogEntryOperation{
		audit.Readings: openapi.READINGS, audit.DryRun: openapi.DRYRUN, audit.Consents: openapi.CONSENTS,
		audit.ConsentStep: openapi.CONSENTSTEP, audit.AccessLog: openapi.ACCESSLOG, audit.Connection: openapi.CONNECTION, audit.Find: openapi.FIND,
	}[op]
	if !ok { // the others name no metering point
		return "", "", errUnreadable
	}
	outcome, ok := map[audit.Outcome]openapi.AccessLogEntryOutcome{
		audit.Given: openapi.GIVEN, audit.Partly: openapi.PARTLY, audit.Withheld: openapi.WITHHELD,
		audit.NoRelation: openapi.REFUSED, audit.Refused: openapi.REFUSED, audit.Failed: openapi.FAILED, audit.Unchanged: openapi.UNCHANGED,
	}[came]
	if !ok {
		return "", "", errUnreadable
	}
	return operation, outcome, nil
}

// renderLog makes the whole answer, in memory.
func (s *Server) renderLog(ctx context.Context, c *call, v *logView, now time.Time) (*document, error) {
	interaction := eventOf(ctx).interaction
	switch v.query.media {
	case mediaHTML:
		operator, err := s.seals.Supplier(c.supplier)
		if err != nil {
			return nil, err // it was verified a moment ago
		}
		return v.html(operator.Name(), operator.GLN(), interaction, now, s.restOf(v))
	case mediaCSV:
		return v.csv(now, s.restOf(v))
	}
	return v.json(interaction, s.nextOf(v))
}

func (v *logView) json(interaction uuid.UUID, next *string) (*document, error) {
	out := openapi.AccessLog{
		InteractionId: interaction, Ean: v.file.EAN().String(), TimeZone: v.profile.Location().String(),
		Entries: make([]openapi.AccessLogEntry, len(v.entries)), Unreadable: []openapi_types.UUID{}, // [] and not null
	}
	for i := range v.entries {
		out.Entries[i] = v.entries[i].AccessLogEntry
	}
	out.Unreadable = append(out.Unreadable, v.unreadable...)
	out.Occupancy.From = date(v.occupancy.Days.From)
	if v.occupancy.Days.To != meter.MaxDay {
		to := date(v.occupancy.Days.To)
		out.Occupancy.To = &to
	}
	out.Links.Next = next
	b, err := json.Marshal(out)
	if err != nil {
		return nil, err
	}
	return &document{media: mediaJSON, body: append(b, '\n')}, nil
}

// link is the address of another part of what v shows.
func (s *Server) link(v *logView, change func(url.Values)) string {
	q := url.Values{"occupancy": {v.occupancy.Days.From.String()}} // said: they may move out before the next page
	for name, value := range map[string]string{"from": v.query.sent.from, "to": v.query.sent.to, "supplier": v.query.sent.supplier, "lang": v.query.sent.lang} {
		if value != "" {
			q.Set(name, value)
		}
	}
	change(q)
	u := *s.public
	u.Path = "/v1/metering-points/" + v.file.EAN().String() + "/access-log"
	u.RawQuery = q.Encode()
	return u.String()
}

// nextOf is the next page; nil when that was the last.
func (s *Server) nextOf(v *logView) *string {
	if v.next == nil {
		return nil
	}
	link := s.link(v, func(q url.Values) {
		q.Set("cursor", encodeLogCursor(*v.next))
		q.Set("limit", strconv.Itoa(v.query.limit))
	})
	return &link
}

// rest is what a statement that is full leaves out: the requests that follow a
// place in the log.
type rest struct {
	at           time.Time // when the last one that was looked at was recorded
	cursor, link string
}

// restOf says where the rest of a statement is; nil when it is whole.
func (s *Server) restOf(v *logView) *rest {
	if v.next == nil {
		return nil
	}
	cursor := encodeLogCursor(*v.next)
	return &rest{v.next.At, cursor, s.link(v, func(q url.Values) { q.Set("cursor", cursor) })}
}

// document is an answer of one of several media types.
type document struct {
	media  string
	header map[string]string
	body   []byte
}

// VisitGetAccessLogResponse sends it.
func (d *document) VisitGetAccessLogResponse(w http.ResponseWriter) error {
	h := w.Header()
	h.Set("Content-Type", contentTypes[d.media])
	h.Set("Content-Length", strconv.Itoa(len(d.body)))
	for name, value := range d.header {
		h.Set(name, value)
	}
	w.WriteHeader(http.StatusOK)
	_, err := w.Write(d.body)
	return err
}
