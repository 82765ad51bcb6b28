package cryptoserver

import (
	"context"
	"crypto/hmac"
	"errors"
	"time"

	"google.golang.org/grpc/codes"

	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/cryptoserver/token"
	"kluis/meter"
)

// Rewrap wraps data keys under the active KEK epoch. What it is given comes
// from the database, so one record that is not what was minted is its own
// fault, and the others go on.
func (s *Server) Rewrap(ctx context.Context, req *cryptopb.RewrapRequest) (*cryptopb.RewrapResponse, error) {
	rotator := s.tokens.Rotate
	if rotator == nil {
		return nil, notServed(RoleRotate)
	}
	n := len(req.Keys)
	c := callOf(ctx)
	c.units = n
	if n == 0 || n > maxKeys {
		return nil, malformed("1 to %d data keys in a call", maxKeys)
	}
	defer s.control.use()()
	if err := s.current(); err != nil {
		return nil, err
	}
	epoch, err := s.activeEpoch()
	if err != nil {
		return nil, err
	}
	resp := &cryptopb.RewrapResponse{KekEpoch: epoch, Keys: make([]*cryptopb.RewrappedKey, n)}
	var parsed []rekeyed
	for i, k := range req.Keys {
		resp.Keys[i] = &cryptopb.RewrappedKey{Fault: cryptopb.Fault_FAULT_DAMAGED}
		if rec, ok := parseKey(k); ok {
			parsed = append(parsed, rekeyed{i, rec})
		}
	}
	macs, err := recordMACs(ctx, rotator, parsed)
	if err != nil {
		return nil, s.tokenError(ctx, RoleRotate, err)
	}
	var genuine []rekeyed
	var keys []token.WrappedKey
	for i, k := range parsed {
		switch {
		case !hmac.Equal(macs[i][:], k.rec.MAC[:]):
		case s.erased(&k.rec):
			resp.Keys[k.at].Fault = cryptopb.Fault_FAULT_ERASED
			c.refused++
		default:
			genuine = append(genuine, k)
			keys = append(keys, token.WrappedKey{ID: k.rec.ID, Epoch: k.rec.Epoch, Wrapped: k.rec.Wrapped})
		}
	}
	rewrapped := genuine[:0]
	if len(keys) > 0 {
		out, err := rotator.Rewrap(ctx, keys, epoch)
		if err != nil {
			return nil, s.tokenError(ctx, RoleRotate, err)
		}
		for i, k := range genuine {
			switch {
			case errors.Is(out[i].Err, token.ErrUnknownEpoch):
				return nil, s.tokenError(ctx, RoleRotate, out[i].Err)
			case out[i].Err == nil:
				k.rec.Epoch, k.rec.Wrapped = epoch, out[i].Wrapped
				rewrapped = append(rewrapped, k)
			}
		}
	}
	if macs, err = recordMACs(ctx, rotator, rewrapped); err != nil {
		return nil, s.tokenError(ctx, RoleRotate, err)
	}
	for i, k := range rewrapped {
		resp.Keys[k.at] = &cryptopb.RewrappedKey{Wrapped: k.rec.Wrapped, Mac: macs[i][:]}
	}
	for _, k := range resp.Keys {
		if k.Fault == cryptopb.Fault_FAULT_DAMAGED {
			c.damaged++
		}
	}
	return resp, nil
}

// rekeyed is a key record and its place in the call.
type rekeyed struct {
	at  int
	rec envelope.KeyRecord
}

func recordMACs(ctx context.Context, rotator token.Rotator, keys []rekeyed) ([][32]byte, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	messages := make([][]byte, len(keys))
	for i := range keys {
		messages[i] = keys[i].rec.Message()
	}
	return rotator.RecordMAC(ctx, messages)
}

// Reseal seals what is sealed under one data key under another one of the same
// metering point, class, month and occupancy. Nothing but ciphertext leaves:
// no plaintext, and no content MAC, by which a plaintext could be guessed.
func (s *Server) Reseal(ctx context.Context, req *cryptopb.ResealRequest) (*cryptopb.ResealResponse, error) {
	opener, sealer := s.tokens.Open, s.tokens.Seal
	if opener == nil {
		return nil, notServed(RoleOpen)
	}
	if sealer == nil {
		return nil, notServed(RoleSeal)
	}
	n := len(req.Blocks)
	c := callOf(ctx)
	c.units, c.blocks = 1, n
	if n == 0 || n > maxBlocks {
		return nil, malformed("1 to %d blocks in a call", maxBlocks)
	}
	ean, err := parseEAN(req.Ean)
	if err != nil {
		return nil, malformed("%v", err)
	}
	seen := make(map[fieldDay]bool, n)
	versions := make(map[blockVersion]bool, n)
	for i, b := range req.Blocks {
		v := blockVersion{fieldDay{meter.FieldCode(b.GetField()), meter.Day(b.GetDay())}, b.GetVersion()}
		if versions[v] {
			return nil, malformed("block %d: its field, day and version are there twice", i)
		}
		versions[v], seen[v.fieldDay] = true, true
	}
	defer s.control.use()()
	if err := s.current(); err != nil {
		return nil, err
	}
	if err := s.recordable(); err != nil {
		return nil, err
	}
	if err := s.rates.wait(ctx, c.identity, n); err != nil {
		return nil, err
	}
	if !s.resealed.admit(ean, seen, s.now()) {
		return nil, sealedTooOften()
	}
	recs, keys, err := s.genuineKeys(ctx, sealer, ean, []*cryptopb.DataKey{req.From, req.To})
	if err != nil {
		return nil, err
	}
	from, to := &recs[0], &recs[1]
	if from.ID == to.ID || from.Class != to.Class || from.Month != to.Month || from.Occupancy != to.Occupancy {
		return nil, refuse(codes.FailedPrecondition, cryptopb.ReasonKeyRecordInvalid, "the two data keys are not of the same class, month and occupancy, or are one", nil)
	}

	b := newResealBatch(req.Blocks)
	defer b.clear()
	resp := &cryptopb.ResealResponse{Blocks: make([]*cryptopb.ResealedBlock, n)}
	for i, in := range req.Blocks {
		resp.Blocks[i] = &cryptopb.ResealedBlock{Fault: cryptopb.Fault_FAULT_DAMAGED}
		b.add(s, i, in, from)
	}
	if len(b.items) > 0 {
		if err := opener.Open(ctx, keys[:1], b.items); err != nil {
			return nil, s.tokenError(ctx, RoleOpen, err)
		}
	}
	for i := range b.items {
		if errors.Is(b.items[i].Err, token.ErrUnknownEpoch) {
			return nil, s.tokenError(ctx, RoleOpen, b.items[i].Err)
		}
	}
	b.turn(s, to)
	if len(b.items) > 0 {
		if err := sealer.Seal(ctx, keys[1:], b.items); err != nil {
			return nil, s.tokenError(ctx, RoleSeal, err)
		}
		if err := s.allSealed(ctx, b.items); err != nil {
			return nil, err
		}
	}
	event := envelope.SealEvent{At: s.now(), Client: c.identity, Kind: envelope.BlocksResealed, EAN: ean, Blocks: make([]envelope.SealedDigest, len(b.items))}
	for i := range b.items {
		item, ref := &b.items[i], &b.refs[i]
		resp.Blocks[ref.at] = &cryptopb.ResealedBlock{
			Ciphertext: envelope.AppendCiphertext(make([]byte, 0, len(item.Out)+envelope.CiphertextOverhead),
				envelope.Ciphertext{KeyID: to.ID, IV: item.IV, Body: item.Out}),
		}
		event.Blocks[i] = envelope.SealedDigest{Field: ref.id.Field, Day: ref.id.Day, Version: ref.id.Version, Digest: envelope.CiphertextDigest(resp.Blocks[ref.at].Ciphertext)}
	}
	if len(event.Blocks) > 0 {
		if err := s.recorder.sealed(event); err != nil {
			return nil, err
		}
	}
	c.damaged = n - len(b.items)
	s.metrics.blocks.WithLabelValues("resealed").Add(float64(len(b.items)))
	s.metrics.blocks.WithLabelValues("damaged").Add(float64(c.damaged))
	return resp, nil
}

// blockVersion names one version of a block of a metering point.
type blockVersion struct {
	fieldDay
	version uint32
}

// resealBatch is the flat memory of one Reseal call.
type resealBatch struct {
	refs  []resealRef // parallel to items
	items []token.Item
	aad   []byte
	plain []byte // all plaintexts, one after another
	block meter.Block
}

type resealRef struct {
	at    int // in the request
	id    envelope.BlockID
	class meter.Class
}

// newResealBatch makes room for a whole call at once: slices into the buffers
// must not move while the batch is built.
func newResealBatch(in []*cryptopb.SealedBlock) *resealBatch {
	size := 0
	for _, b := range in {
		size += len(b.GetCiphertext())
	}
	n := len(in)
	return &resealBatch{
		refs: make([]resealRef, 0, n), items: make([]token.Item, 0, n),
		aad: make([]byte, 0, 2*n*envelope.AADSize), plain: make([]byte, 0, size),
		block: meter.Block{Values: make([]meter.Value, 0, maxValues), Quality: make([]meter.Quality, 0, maxValues)},
	}
}

// add binds a block to what it must be; one that cannot be is left out.
func (b *resealBatch) add(s *Server, at int, in *cryptopb.SealedBlock, from *envelope.KeyRecord) {
	if in == nil || in.Field > 1<<16-1 || in.Version == 0 {
		return
	}
	code, day := meter.FieldCode(in.Field), meter.Day(in.Day)
	if !s.sealedUnder(from, code, day, in.Resolution) {
		return
	}
	ct, err := envelope.ParseCiphertext(in.Ciphertext)
	if err != nil || ct.KeyID != from.ID {
		return
	}
	id := envelope.BlockID{
		EAN: from.EAN, Field: code, Day: day, Resolution: meter.Resolution(in.Resolution), Version: in.Version, KeyID: from.ID,
	}
	size := len(ct.Body) - envelope.TagSize
	out := b.plain[len(b.plain) : len(b.plain)+size]
	b.plain = b.plain[:len(b.plain)+size]
	b.items = append(b.items, token.Item{IV: ct.IV, AAD: b.bind(id), In: ct.Body, Out: out[:size:size]})
	b.refs = append(b.refs, resealRef{at, id, from.Class})
}

// sealedUnder says whether what is of a field and day, or an identity of a first
// day, is sealed under a data key.
func (s *Server) sealedUnder(k *envelope.KeyRecord, code meter.FieldCode, day meter.Day, resolution uint32) bool {
	if day.Month() != k.Month {
		return false
	}
	if k.Class == meter.Identity {
		identity, ok := s.profile.IdentityCode()
		return ok && code == identity && day == k.Occupancy && resolution == 0
	}
	field, ok := s.profile.FieldByCode(code)
	return ok && field.Class == k.Class && storedAs(field, resolution)
}

func (b *resealBatch) bind(id envelope.BlockID) []byte {
	from := len(b.aad)
	b.aad = id.AppendAAD(b.aad)
	return b.aad[from:len(b.aad):len(b.aad)]
}

// turn makes what was opened into what is to be sealed. Only what is a block, or
// an identity, is sealed again.
func (b *resealBatch) turn(s *Server, to *envelope.KeyRecord) {
	n := 0
	for i := range b.items {
		item, ref := b.items[i], b.refs[i]
		if item.Err != nil || !b.whole(item.Out, &ref, s.profile.Location()) {
			continue
		}
		ref.id.KeyID = to.ID
		b.refs[n] = ref
		b.items[n] = token.Item{
			IV: make([]byte, envelope.IVSize), AAD: b.bind(ref.id), In: item.Out, Out: make([]byte, len(item.Out)+envelope.TagSize),
		}
		n++
	}
	b.items, b.refs = b.items[:n], b.refs[:n]
}

// whole says whether a plaintext is what it should be.
func (b *resealBatch) whole(plain []byte, ref *resealRef, zone *time.Location) bool {
	if ref.class == meter.Identity {
		_, err := envelope.ParsePerson(plain)
		return err == nil
	}
	return meter.DecodeBlock(plain, &b.block, ref.id.Day, ref.id.Resolution, ref.class, zone) == nil
}

func (b *resealBatch) clear() {
	clear(b.plain[:cap(b.plain)])
	clear(b.block.Values[:cap(b.block.Values)])
	clear(b.block.Quality[:cap(b.block.Quality)])
	b.block.Start = 0
}
