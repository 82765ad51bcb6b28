package cryptoserver

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"kluis/authz"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/cryptoserver/token"
	"kluis/internal/authn"
	"kluis/meter"
)

// openWork is the memory of one Open call, reused by the next. Everything in
// it that held plaintext is cleared before it goes back.
type openWork struct {
	units  []unitWork
	in     blockColumns
	start  []int // memory of in
	out    seriesColumns
	refs   []blockRef
	keys   []token.WrappedKey
	parsed []unitKey // of one unit
	items  []token.Item
	aad    []byte
	plain  []byte
	blocks []meter.Block // parallel to items
	days   []int32       // memory of all dayBlocks
	zone   meter.Calendar
	opened []envelope.Opened
	eans   []int64 // of the units of which something is opened
}

// unitWork is one metering point of the call.
type unitWork struct {
	file     *authz.LegalFile
	purpose  meter.Purpose
	asked    meter.DayRange
	grant    authz.Grant
	items    []authz.GrantItem
	withheld []authz.Withheld
	blocks   [2]int // from and to, in openWork.in
	first    int    // of its items in openWork.items
	end      int
	fields   []dayBlocks
	damaged  []fieldDay
	erased   []fieldDay
	counts   struct{ opened, outside, duplicate, damaged, erased uint32 }
	receipt  envelope.Receipt
	out      *cryptopb.OpenedUnit
}

// dayBlocks holds the blocks of one field, by the days since from.
type dayBlocks struct {
	field meter.Field
	from  meter.Day
	at    []int32
}

// What is in dayBlocks, beside an item of the batch, counted from 1.
const (
	notSent  = 0
	notGiven = -1 // it was sent, and cannot be given
)

type fieldDay struct {
	field meter.FieldCode
	day   meter.Day
}

// blockRef says what item i of the batch is.
type blockRef struct {
	index uint32 // in the unit's blocks
	field int    // in the unit's fields
	id    envelope.BlockID
}

// Open is the evidence check and what follows from it.
func (s *Server) Open(ctx context.Context, req *cryptopb.OpenRequest) (*cryptopb.OpenResponse, error) {
	if s.tokens.Open == nil {
		return nil, notServed(RoleOpen)
	}
	c := callOf(ctx)
	c.units = len(req.Units)
	if len(req.Units) == 0 || len(req.Units) > maxUnits {
		return nil, malformed("1 to %d metering points in a call", maxUnits)
	}
	var fieldDays int64
	keys := 0
	c.blocks = len(req.GetBlocks().GetField())
	for _, u := range req.Units {
		if len(u.GetKeys()) > maxKeys {
			return nil, malformed("at most %d data keys of a metering point", maxKeys)
		}
		if keys += len(u.GetKeys()); keys > token.MaxKeys {
			return nil, malformed("at most %d data keys in a call", token.MaxKeys)
		}
		// Each term is far from overflowing the sum, which is checked every time.
		fieldDays += max(0, int64(u.GetToDay())-int64(u.GetFromDay())) * int64(len(u.GetFields()))
		if fieldDays > maxFieldDays {
			return nil, malformed("at most %d days in a call, counted for each field", maxFieldDays)
		}
	}
	if c.blocks > maxBlocks {
		return nil, malformed("at most %d blocks in a call", maxBlocks)
	}
	now := s.now()
	caller, err := s.caller(ctx, req.AccessToken, req.SupplierRecord, authn.ScopeReadings, now)
	if err != nil {
		return nil, err
	}
	if err := s.sameProfile(req.ProfileDigest); err != nil {
		return nil, err
	}

	defer s.control.use()()
	if err := s.current(); err != nil {
		return nil, err
	}
	if err := s.recordable(); err != nil {
		return nil, err
	}

	w := s.work.Get().(*openWork)
	defer s.release(w)
	if w.in, err = parseBlocks(req, w.start); err != nil {
		return nil, err
	}
	w.start = w.in.start
	w.grow(req, int(fieldDays))
	from := 0
	for i, u := range req.Units {
		to := from + int(u.GetBlocks())
		w.units = append(w.units, unitWork{out: &cryptopb.OpenedUnit{}, blocks: [2]int{from, to}})
		if err := s.authorise(w, &w.units[i], caller, u, now); err != nil {
			return nil, err
		}
		from = to
	}
	if len(w.items) > 0 {
		for i := range w.units {
			if u := &w.units[i]; u.end > u.first {
				w.eans = append(w.eans, u.file.EAN().Int64())
			}
		}
		if err := s.points.admit(caller.TokenID(), caller.ExpiresAt(), w.eans, now); err != nil {
			return nil, err
		}
		if err := s.tokens.Open.Open(ctx, w.keys, w.items); err != nil {
			return nil, s.tokenError(ctx, RoleOpen, err)
		}
		// A KEK that this token lacks is this server's fault, not damage; unless
		// no key can have been wrapped under it, or one row of a writer of the
		// database would cost a whole call.
		for i := range w.items {
			if !errors.Is(w.items[i].Err, token.ErrUnknownEpoch) {
				continue
			}
			if s.control.Activated(w.keys[w.items[i].Key].Epoch) {
				return nil, s.tokenError(ctx, RoleOpen, w.items[i].Err)
			}
			s.metrics.blocks.WithLabelValues("unknown_epoch").Inc()
		}
	}
	resp := &cryptopb.OpenResponse{Units: make([]*cryptopb.OpenedUnit, len(w.units))}
	for i := range w.units {
		u := &w.units[i]
		if err := s.finishUnit(w, u, caller, req.Units[i], now); err != nil {
			return nil, err
		}
		c.refused += int(u.counts.outside + u.counts.duplicate + u.counts.erased)
		c.damaged += int(u.counts.damaged)
		resp.Units[i] = u.out
	}
	if err := s.record(w); err != nil {
		return nil, err
	}
	resp.Days = w.out.take()
	return resp, nil
}

// record writes the receipts of all metering points into the journal, before any
// of it leaves.
func (s *Server) record(w *openWork) error {
	var receipts []envelope.Receipt
	for i := range w.units {
		if w.units[i].file != nil {
			receipts = append(receipts, w.units[i].receipt)
		}
	}
	encoded, err := s.recorder.opened(receipts)
	if err != nil {
		return err
	}
	for i := range w.units {
		if w.units[i].file != nil {
			w.units[i].out.Receipt, encoded = encoded[0], encoded[1:]
		}
	}
	return nil
}

// caller establishes who asks, from the token and the sealed record of its client
// alone: a supplier with the scope, or an employee.
func (s *Server) caller(ctx context.Context, accessToken string, sealed []byte, scope string, now time.Time) (authn.Caller, error) {
	var none authn.Caller
	t, err := s.verifier.VerifyDetached(ctx, accessToken)
	if err != nil {
		return none, refuse(codes.Unauthenticated, cryptopb.ReasonTokenInvalid, "the access token does not verify", err)
	}
	record, err := s.sealKeys.Supplier(sealed)
	if err != nil {
		return none, refuse(codes.PermissionDenied, cryptopb.ReasonSupplierInvalid, "the supplier record does not verify under the pinned seal keys", err)
	}
	if s.suppliers.outdated(record.GLN(), record.Version(), now) || s.supersededSupplier(record) {
		return none, outdatedSupplier()
	}
	// The record must be the client's, accept the certificate that the token
	// is bound to, and hold the scope.
	caller, err := t.Authenticate(record, authn.ScopeStaff, now)
	if errors.Is(err, authn.ErrInsufficientScope) {
		caller, err = t.Authenticate(record, scope, now)
	}
	switch {
	case errors.Is(err, authn.ErrInsufficientScope):
		return none, refuse(codes.PermissionDenied, cryptopb.ReasonScope, "the scope "+scope+" is missing from the token or the supplier record", err)
	case err != nil:
		return none, refuse(codes.PermissionDenied, cryptopb.ReasonSupplierInvalid, "the supplier record does not accept the access token", err)
	case (caller.Employee() != nil) != (caller.Scope() == authn.ScopeStaff):
		return none, refuse(codes.PermissionDenied, cryptopb.ReasonScope, "the scope "+authn.ScopeStaff+" is an employee's, and of nobody else", nil)
	}
	return caller, nil
}

func outdatedSupplier() error {
	return refuse(codes.PermissionDenied, cryptopb.ReasonSupplierInvalid, "the supplier record is older than the newest one known: fetch the current version", nil)
}

// authorise decides on one metering point and adds to the batch the blocks
// that may be opened, each bound to what was authorised. Only a malformed
// request is an error.
func (s *Server) authorise(w *openWork, u *unitWork, caller authn.Caller, in *cryptopb.OpenUnit, now time.Time) error {
	u.first, u.end = len(w.items), len(w.items)
	if len(in.GetInteractionId()) != 16 {
		return malformed("interaction id of 16 bytes")
	}
	r, err := parseRequest(in, s.profile)
	if err != nil {
		return err
	}
	u.purpose, u.asked = r.Purpose, r.Days
	u.file, err = s.sealKeys.LegalFile(in.LegalFile)
	if err != nil {
		u.out.Status = cryptopb.UnitStatus_UNIT_STATUS_EVIDENCE_INVALID
		s.metrics.units.WithLabelValues("evidence_invalid").Inc()
		return nil
	}
	r.EAN = u.file.EAN()
	if s.files.outdated(r.EAN, sealedAt(u.file), now) {
		u.file = nil
		u.out.Status = cryptopb.UnitStatus_UNIT_STATUS_EVIDENCE_INVALID
		s.metrics.units.WithLabelValues("evidence_outdated").Inc()
		return nil
	}
	if s.supersededFile(u.file) {
		u.file = nil
		u.out.Status = cryptopb.UnitStatus_UNIT_STATUS_EVIDENCE_INVALID
		return nil
	}
	if e := caller.Employee(); e != nil && !onErrand(e, &r) {
		u.file = nil
		s.noRelation(u)
		return nil
	}
	u.grant, u.withheld, err = authz.Decide(caller, r, u.file, s.profile, now)
	if err != nil {
		u.file = nil
		if !errors.Is(err, authz.ErrNoRelation) {
			return refuse(codes.Internal, cryptopb.ReasonInternal, "no decision", err)
		}
		s.noRelation(u)
		return nil
	}
	u.items = u.grant.Items()
	u.out.Status = cryptopb.UnitStatus_UNIT_STATUS_OK
	s.metrics.units.WithLabelValues("ok").Inc()

	keys := w.keysOf(len(in.Keys))
	for at := u.blocks[0]; at < u.blocks[1]; at++ {
		i := at - u.blocks[0]
		b := w.in.in
		if b.Field[at] > 1<<16-1 {
			return malformed("a block without a field")
		}
		code, day := meter.FieldCode(b.Field[at]), meter.Day(b.Day[at])
		if !u.grant.Covers(code, day) {
			u.counts.outside++
			u.fault(i, cryptopb.Fault_FAULT_OUTSIDE_GRANT)
			continue
		}
		if e := caller.Employee(); e != nil {
			if field, ok := s.profile.FieldByCode(code); !ok || !mayOpen(e, u.purpose, u.file.EAN(), field, day) {
				u.counts.outside++
				u.fault(i, cryptopb.Fault_FAULT_OUTSIDE_GRANT)
				continue
			}
		}
		f := w.field(u, code, s.profile)
		place, ok := u.fields[f].place(day)
		if !ok {
			return refuse(codes.Internal, cryptopb.ReasonInternal, "internal error", errBeyond)
		}
		if *place != notSent {
			u.counts.duplicate++
			u.fault(i, cryptopb.Fault_FAULT_DUPLICATE)
			continue
		}
		*place = notGiven
		field := &u.fields[f].field
		ct, err := envelope.ParseCiphertext(w.in.ciphertext(at))
		// By the id that the ciphertext is bound to: the record of the key may
		// be gone.
		if s.control.Erased(ct.KeyID, day.Month()) {
			u.erase(i, code, day)
			continue
		}
		if err != nil || b.Version[at] == 0 || !storedAs(*field, b.Resolution[at]) || uint64(b.Key[at]) >= uint64(len(in.Keys)) {
			u.damage(i, code, day)
			continue
		}
		// What the key record says of itself must agree with where it is used,
		// so that a neighbour's key is not even unwrapped.
		key := keys[b.Key[at]].parse(in.Keys[b.Key[at]])
		if !key.ok || key.rec.EAN != u.file.EAN() || key.rec.Class != field.Class ||
			key.rec.Month != day.Month() || key.rec.ID != ct.KeyID {
			u.damage(i, code, day)
			continue
		}
		if s.control.Destroyed(key.rec.Epoch) {
			u.erase(i, code, day)
			continue
		}
		if !key.used {
			key.used, key.at = true, len(w.keys)
			w.keys = append(w.keys, token.WrappedKey{ID: ct.KeyID, Epoch: key.rec.Epoch, Wrapped: key.rec.Wrapped})
		}
		id := envelope.BlockID{
			EAN: u.file.EAN(), Field: code, Day: day, Resolution: meter.Resolution(b.Resolution[at]),
			Version: b.Version[at], KeyID: ct.KeyID,
		}
		from := len(w.aad)
		w.aad = id.AppendAAD(w.aad)
		size := len(ct.Body) - envelope.TagSize
		out := w.plain[len(w.plain) : len(w.plain)+size]
		w.plain = w.plain[:len(w.plain)+size]
		w.items = append(w.items, token.Item{
			Key: key.at, IV: ct.IV, AAD: w.aad[from:len(w.aad):len(w.aad)], In: ct.Body, Out: out[:size:size],
		})
		w.refs = append(w.refs, blockRef{index: uint32(i), field: f, id: id})
	}
	u.end = len(w.items)
	return nil
}

// noRelation answers alike, whatever the caller lacks.
func (s *Server) noRelation(u *unitWork) {
	u.out.Status = cryptopb.UnitStatus_UNIT_STATUS_NO_RELATION
	s.metrics.units.WithLabelValues("no_relation").Inc()
}

// finishUnit turns what the token opened into what may leave.
func (s *Server) finishUnit(w *openWork, u *unitWork, caller authn.Caller, in *cryptopb.OpenUnit, now time.Time) error {
	if u.file == nil {
		return nil
	}
	w.opened = w.opened[:0]
	for i := u.first; i < u.end; i++ {
		item, ref, block := &w.items[i], &w.refs[i], &w.blocks[i]
		f := &u.fields[ref.field]
		if item.Err != nil || w.zone.DecodeBlock(item.Out, block, ref.id.Day, ref.id.Resolution, f.field.Class) != nil {
			u.damage(int(ref.index), ref.id.Field, ref.id.Day)
			continue
		}
		u.counts.opened++
		place, _ := f.place(ref.id.Day)
		*place = int32(i) + 1
		w.opened = append(w.opened, openedUnder(u.items, ref.id))
	}
	var series []meter.Series
	for _, g := range u.items {
		var blocks dayBlocks
		for _, f := range u.fields {
			if f.field.Code == g.Spec.Field.Code {
				blocks = f
			}
		}
		made, short := w.zone.Assemble(g.Spec, func(d meter.Day) *meter.Block {
			if place, ok := blocks.place(d); ok && *place > 0 {
				return &w.blocks[*place-1]
			}
			return nil
		})
		for i := range made {
			if made[i].Resolution < g.Spec.Granularity {
				return refuse(codes.Internal, cryptopb.ReasonInternal, "internal error", errTooFine)
			}
			made[i].Basis, made[i].Rule = g.Basis, g.Rule
		}
		series = append(series, made...)
		for _, sf := range short {
			u.withheld = append(u.withheld, authz.Withheld{Field: g.Spec.Field.Code, Days: sf.Days, Reason: sf.Reason})
		}
	}
	u.withheld = append(u.withheld, runs(u.damaged, meter.Damaged)...)
	u.withheld = append(u.withheld, runs(u.erased, meter.Erased)...)
	u.out.Series = w.out.add(series)
	u.out.Withheld = withheldToWire(u.withheld)
	u.receipt = envelope.Receipt{
		At:            now,
		InteractionID: [16]byte(in.InteractionId),
		Supplier:      caller.Supplier(),
		TokenID:       caller.TokenID(),
		EAN:           u.file.EAN(),
		Purpose:       u.purpose,
		LegalFile:     u.file.Digest(),
		FileVersion:   u.file.Version(),
		Profile:       s.digest,
		Opened:        u.counts.opened,
		Refused:       u.counts.outside + u.counts.duplicate + u.counts.erased,
		Damaged:       u.counts.damaged,
		Content:       envelope.ContentDigest(w.opened),
	}
	if e := caller.Employee(); e != nil {
		u.receipt.Employee = envelope.EmployeeDigest(u.receipt.TokenID, e.Subject, e.Errand.Reason)
	}
	for _, c := range [...]struct {
		outcome string
		n       uint32
	}{
		{"opened", u.counts.opened}, {"outside_grant", u.counts.outside}, {"duplicate", u.counts.duplicate},
		{"damaged", u.counts.damaged}, {"erased", u.counts.erased},
	} {
		if c.n > 0 {
			s.metrics.blocks.WithLabelValues(c.outcome).Add(float64(c.n))
		}
	}
	return nil
}

var (
	errTooFine = errors.New("assembled finer than granted")
	errBeyond  = errors.New("granted beyond what was asked for")
)

// openedUnder names the basis a block was opened on and how fine it left. The
// closing read of a register belongs to the day before it.
func openedUnder(items []authz.GrantItem, id envelope.BlockID) envelope.Opened {
	for _, back := range []meter.Day{0, 1} {
		for i := range items {
			item := &items[i]
			if item.Spec.Field.Code != id.Field || !item.Spec.Days.Contains(id.Day-back) {
				continue
			}
			given := item.Spec.Resolution
			if given == 0 {
				given = max(item.Spec.Granularity, id.Resolution)
			} else if given < id.Resolution {
				given = 0 // finer than stored: withheld
			}
			return envelope.Opened{ID: id, Basis: item.Basis, Given: given}
		}
	}
	return envelope.Opened{ID: id}
}

func (u *unitWork) fault(index int, f cryptopb.Fault) {
	u.out.Faults = append(u.out.Faults, &cryptopb.ItemFault{Block: uint32(index), Fault: f})
}

func (u *unitWork) damage(index int, f meter.FieldCode, d meter.Day) {
	u.counts.damaged++
	u.fault(index, cryptopb.Fault_FAULT_DAMAGED)
	u.damaged = append(u.damaged, fieldDay{f, d})
}

func (u *unitWork) erase(index int, f meter.FieldCode, d meter.Day) {
	u.counts.erased++
	u.fault(index, cryptopb.Fault_FAULT_ERASED)
	u.erased = append(u.erased, fieldDay{f, d})
}

// runs lists the days of blocks as runs.
func runs(days []fieldDay, reason meter.Reason) []authz.Withheld {
	slices.SortFunc(days, func(a, b fieldDay) int {
		if a.field != b.field {
			return int(a.field) - int(b.field)
		}
		return int(a.day) - int(b.day)
	})
	var out []authz.Withheld
	for _, d := range days {
		if n := len(out); n > 0 && out[n-1].Field == d.field && out[n-1].Days.To == d.day {
			out[n-1].Days.To++
			continue
		}
		out = append(out, authz.Withheld{Field: d.field, Days: meter.DayRange{From: d.day, To: d.day + 1}, Reason: reason})
	}
	return out
}

// grow makes room for a whole call at once: slices into the buffers must not
// move while the batch is built.
func (w *openWork) grow(req *cryptopb.OpenRequest, fieldDays int) {
	blocks, fields := w.in.len(), 0
	for _, u := range req.Units {
		fields += min(len(u.GetFields()), maxFields)
	}
	w.units = slices.Grow(w.units[:0], len(req.Units))
	w.refs = slices.Grow(w.refs[:0], blocks)
	w.items = slices.Grow(w.items[:0], blocks)
	w.aad = slices.Grow(w.aad[:0], blocks*envelope.AADSize)
	w.plain = slices.Grow(w.plain[:0], len(w.in.in.Ciphertexts))
	w.days = slices.Grow(w.days[:0], fieldDays+fields) // and the closing reads
	w.keys = w.keys[:0]
	if n := blocks - len(w.blocks); n > 0 {
		w.blocks = append(w.blocks, make([]meter.Block, n)...)
	}
}

// unitKey is a key record of the unit, parsed when first needed, and its place
// among the keys of the batch.
type unitKey struct {
	rec    envelope.KeyRecord
	parsed bool
	ok     bool
	used   bool
	at     int
}

func (k *unitKey) parse(in *cryptopb.DataKey) *unitKey {
	if !k.parsed {
		k.parsed = true
		k.rec, k.ok = parseKey(in)
	}
	return k
}

// keysOf is memory for the keys of a unit.
func (w *openWork) keysOf(n int) []unitKey {
	w.parsed = slices.Grow(w.parsed[:0], n)[:n]
	clear(w.parsed)
	return w.parsed
}

// field finds or adds the unit's entry of a field.
func (w *openWork) field(u *unitWork, code meter.FieldCode, p *meter.Profile) int {
	for i := range u.fields {
		if u.fields[i].field.Code == code {
			return i
		}
	}
	f, _ := p.FieldByCode(code) // a granted field is in the catalogue
	n := u.asked.Len() + 1      // and the closing read
	w.days = slices.Grow(w.days, n)
	at := w.days[len(w.days) : len(w.days)+n : len(w.days)+n]
	w.days = w.days[:len(w.days)+n]
	clear(at)
	u.fields = append(u.fields, dayBlocks{f, u.asked.From, at})
	return len(u.fields) - 1
}

// place is that of a day.
func (f *dayBlocks) place(d meter.Day) (*int32, bool) {
	if i := int64(d) - int64(f.from); i >= 0 && i < int64(len(f.at)) {
		return &f.at[i], true
	}
	return nil, false
}

// release clears what held plaintext and keeps the memory, unless the call was
// so large that keeping it would be waste.
func (s *Server) release(w *openWork) {
	clear(w.plain)
	for i := range w.items {
		b := &w.blocks[i]
		clear(b.Values[:cap(b.Values)])
		clear(b.Quality[:cap(b.Quality)])
		b.Start = 0
	}
	clear(w.units)
	clear(w.items)
	clear(w.keys)
	clear(w.refs)
	clear(w.opened)
	if clear(w.parsed[:cap(w.parsed)]); cap(w.parsed) > keepKeys {
		w.parsed = nil
	}
	w.out.reset()
	w.in = blockColumns{}
	w.units, w.items, w.keys, w.refs, w.opened, w.eans = w.units[:0], w.items[:0], w.keys[:0], w.refs[:0], w.opened[:0], w.eans[:0]
	if cap(w.plain) <= keepPlain {
		s.work.Put(w)
	}
}

const (
	keepPlain = 1 << 20
	keepKeys  = 256
)
