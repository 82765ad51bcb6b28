package cryptoserver

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	"kluis/authz"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/cryptoserver/token"
	"kluis/meter"
)

// Mint makes data keys: generated and wrapped in the token, with a random id
// of the token's and a MAC over the whole record.
func (s *Server) Mint(ctx context.Context, req *cryptopb.MintRequest) (*cryptopb.MintResponse, error) {
	minter := s.tokens.Mint
	if minter == nil {
		return nil, notServed(RoleMint)
	}
	n := len(req.Keys)
	callOf(ctx).units = n
	if n == 0 || n > maxMint {
		return nil, malformed("1 to %d keys in a call", maxMint)
	}
	defer s.control.use()()
	if err := s.current(); err != nil {
		return nil, err
	}
	epoch, err := s.activeEpoch()
	if err != nil {
		return nil, err
	}
	recs := make([]envelope.KeyRecord, n)
	for i, k := range req.Keys {
		ean, err := parseEAN(k.GetEan())
		if err != nil {
			return nil, malformed("key %d: %v", i, err)
		}
		if !validClass(k.Class) || k.Month < 0 || meter.Month(k.Month) > maxMonth || k.Occupancy < 0 {
			return nil, malformed("key %d: class, month or occupancy out of range", i)
		}
		recs[i].EAN, recs[i].Class, recs[i].Month, recs[i].Occupancy = ean, meter.Class(k.Class), meter.Month(k.Month), meter.Day(k.Occupancy)
		if recs[i].Class != meter.Identity && recs[i].Month < s.control.Before() {
			return nil, keyErased(i)
		}
	}
	wrapped, err := minter.Mint(ctx, epoch, n)
	if err != nil {
		return nil, s.tokenError(ctx, RoleMint, err)
	}
	ids := make([]byte, 16*n)
	if err := minter.Random(ctx, ids); err != nil {
		return nil, s.tokenError(ctx, RoleMint, err)
	}
	messages := make([][]byte, n)
	for i := range recs {
		copy(recs[i].ID[:], ids[16*i:])
		recs[i].Epoch, recs[i].Wrapped = epoch, wrapped[i]
		messages[i] = recs[i].Message()
	}
	macs, err := minter.RecordMAC(ctx, messages)
	if err != nil {
		return nil, s.tokenError(ctx, RoleMint, err)
	}
	resp := &cryptopb.MintResponse{Keys: make([]*cryptopb.DataKey, n)}
	for i := range recs {
		recs[i].MAC = macs[i]
		resp.Keys[i] = keyToWire(&recs[i])
	}
	return resp, nil
}

// Seal encrypts blocks of one metering point. Everything is checked before
// anything is sealed: the MAC of every key record first, because AES key wrap
// would not notice a neighbour's key in its place.
func (s *Server) Seal(ctx context.Context, req *cryptopb.SealRequest) (*cryptopb.SealResponse, error) {
	sealer := s.tokens.Seal
	if sealer == nil {
		return nil, notServed(RoleSeal)
	}
	n := len(req.Blocks)
	c := callOf(ctx)
	c.units, c.blocks = 1, n
	if n == 0 || n > maxBlocks || len(req.Keys) == 0 || len(req.Keys) > maxKeys {
		return nil, malformed("1 to %d blocks and 1 to %d data keys in a call", maxBlocks, maxKeys)
	}
	ean, err := parseEAN(req.Ean)
	if err != nil {
		return nil, malformed("%v", err)
	}
	seen := make(map[fieldDay]bool, n)
	for i, in := range req.Blocks {
		if len(in.GetValues()) > maxValues {
			return nil, malformed("block %d: more values than a day has", i)
		}
		at := fieldDay{meter.FieldCode(in.GetField()), meter.Day(in.GetDay())}
		if seen[at] {
			return nil, malformed("block %d: its field and day are there twice", i)
		}
		seen[at] = true
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
	if !s.sealed.admit(ean, seen, s.now()) {
		return nil, sealedTooOften()
	}
	recs, keys, err := s.genuineKeys(ctx, sealer, ean, req.Keys)
	if err != nil {
		return nil, err
	}

	b := sealBatch{ids: make([]envelope.BlockID, n), ends: make([]int, n)}
	size := 0
	for _, in := range req.Blocks {
		size += plainBound + 16*len(in.GetValues())
	}
	b.plain = make([]byte, 0, size) // so that no copy is left behind by growing
	defer b.clear()
	for i, in := range req.Blocks {
		if err := s.addPlain(&b, i, in, ean, recs); err != nil {
			return nil, err
		}
	}
	b.build(recs, req.Blocks)
	if err := sealer.Seal(ctx, keys, b.items); err != nil {
		return nil, s.tokenError(ctx, RoleSeal, err)
	}
	if err := s.allSealed(ctx, b.items); err != nil {
		return nil, err
	}
	macs, err := sealer.ContentMAC(ctx, b.messages)
	if err != nil {
		return nil, s.tokenError(ctx, RoleSeal, err)
	}
	resp := &cryptopb.SealResponse{Blocks: make([]*cryptopb.SealedContent, n)}
	event := envelope.SealEvent{At: s.now(), Client: c.identity, Kind: envelope.BlocksSealed, EAN: ean, Blocks: make([]envelope.SealedDigest, n)}
	for i := range b.items {
		item := &b.items[i]
		resp.Blocks[i] = &cryptopb.SealedContent{
			Ciphertext: envelope.AppendCiphertext(make([]byte, 0, len(item.Out)+envelope.CiphertextOverhead),
				envelope.Ciphertext{KeyID: b.ids[i].KeyID, IV: item.IV, Body: item.Out}),
			ContentMac: macs[i][:],
		}
		id := &b.ids[i]
		event.Blocks[i] = envelope.SealedDigest{Field: id.Field, Day: id.Day, Version: id.Version, Digest: envelope.CiphertextDigest(resp.Blocks[i].Ciphertext)}
	}
	if err := s.recorder.sealed(event); err != nil {
		return nil, err
	}
	s.metrics.blocks.WithLabelValues("sealed").Add(float64(n))
	return resp, nil
}

func sealedTooOften() error {
	return refuse(codes.ResourceExhausted, cryptopb.ReasonSealedTooOften,
		"the same field and day was sealed too often within a day: try again tomorrow", nil)
}

// allSealed: a key that does not unwrap is no reason to seal the rest.
func (s *Server) allSealed(ctx context.Context, items []token.Item) error {
	for i := range items {
		switch item := &items[i]; {
		case errors.Is(item.Err, token.ErrUnknownEpoch):
			return s.tokenError(ctx, RoleSeal, item.Err)
		case item.Err != nil:
			// Its record's MAC verified, so its wrapped form is what was minted.
			return refuse(codes.DataLoss, cryptopb.ReasonKeyRecordInvalid,
				fmt.Sprintf("data key %d does not unwrap on this token, although its record is genuine", item.Key), item.Err)
		}
	}
	return nil
}

// genuineKeys accepts only records of this metering point whose MAC verifies
// and that are not erased.
func (s *Server) genuineKeys(ctx context.Context, sealer token.Sealer, ean meter.EAN, in []*cryptopb.DataKey) ([]envelope.KeyRecord, []token.WrappedKey, error) {
	recs := make([]envelope.KeyRecord, len(in))
	messages := make([][]byte, len(in))
	keys := make([]token.WrappedKey, len(in))
	for i, k := range in {
		rec, ok := parseKey(k)
		if !ok {
			return nil, nil, malformed("data key %d: not a key record", i)
		}
		if rec.EAN != ean {
			return nil, nil, keyRecordInvalid(i, "is of another metering point")
		}
		recs[i], messages[i] = rec, rec.Message()
		keys[i] = token.WrappedKey{ID: rec.ID, Epoch: rec.Epoch, Wrapped: rec.Wrapped}
	}
	macs, err := sealer.RecordMAC(ctx, messages)
	if err != nil {
		return nil, nil, s.tokenError(ctx, RoleSeal, err)
	}
	for i := range macs {
		if !hmac.Equal(macs[i][:], recs[i].MAC[:]) {
			return nil, nil, keyRecordInvalid(i, "is not what was minted: its MAC does not verify; nothing was sealed")
		}
		if s.erased(&recs[i]) {
			return nil, nil, keyErased(i)
		}
	}
	return recs, keys, nil
}

// erased says whether a data key is erased, or all that its epoch wrapped. Who
// lives somewhere for long stays known when old readings go: keys of identities
// are erased by name only.
func (s *Server) erased(k *envelope.KeyRecord) bool {
	return s.control.ErasedByName(k.ID) || k.Class != meter.Identity && s.control.Erased(k.ID, k.Month) || s.control.Destroyed(k.Epoch)
}

func keyErased(i int) error {
	return refuse(codes.FailedPrecondition, cryptopb.ReasonKeyErased,
		fmt.Sprintf("data key %d was erased, or its month: nothing is sealed under it any more", i), nil)
}

func keyRecordInvalid(i int, what string) error {
	return refuse(codes.FailedPrecondition, cryptopb.ReasonKeyRecordInvalid, fmt.Sprintf("the record of data key %d %s", i, what), nil)
}

// sealBatch is the flat memory of one Seal call.
type sealBatch struct {
	ids      []envelope.BlockID
	plain    []byte // all plaintexts, one after another
	ends     []int
	items    []token.Item
	message  []byte // all content messages, one after another
	messages [][]byte
}

// plainBound is more than a block's encoding needs besides its values.
const plainBound = 128

// addPlain checks and encodes block i.
func (s *Server) addPlain(b *sealBatch, i int, in *cryptopb.PlainBlock, ean meter.EAN, recs []envelope.KeyRecord) error {
	if in == nil || in.Field > 1<<16-1 {
		return malformed("block %d: unknown field", i)
	}
	field, ok := s.profile.FieldByCode(meter.FieldCode(in.Field))
	if !ok {
		return malformed("block %d: unknown field", i)
	}
	if !storedAs(field, in.Resolution) {
		return malformed("block %d: the field is not stored at this resolution", i)
	}
	if in.Version == 0 || uint64(in.Key) >= uint64(len(recs)) {
		return malformed("block %d: no version, or no such data key", i)
	}
	day := meter.Day(in.Day)
	rec := &recs[in.Key]
	if rec.Class != field.Class || rec.Month != day.Month() {
		return keyRecordInvalid(int(in.Key), fmt.Sprintf("is for another class of fields or another month than block %d", i))
	}
	if len(in.Quality) != 0 && len(in.Quality) != len(in.Values) {
		return malformed("block %d: as many quality codes as values, or none", i)
	}
	block := meter.Block{
		Day: day, Resolution: meter.Resolution(in.Resolution), Start: meter.Value(in.Start),
		Values: make([]meter.Value, len(in.Values)),
	}
	if len(in.Quality) > 0 {
		block.Quality = make([]meter.Quality, len(in.Quality))
	}
	for j, v := range in.Values {
		block.Values[j] = meter.Value(v)
	}
	for j, q := range in.Quality {
		block.Quality[j] = meter.Quality(q)
	}
	plain, err := meter.AppendBlock(b.plain, &block, field.Class, s.profile.Location())
	clear(block.Values)
	if err != nil {
		return malformed("block %d: %v", i, err) // the text tells no value
	}
	b.plain, b.ends[i] = plain, len(plain)
	b.ids[i] = envelope.BlockID{
		EAN: ean, Field: field.Code, Day: day, Resolution: block.Resolution, Version: in.Version, KeyID: rec.ID,
	}
	return nil
}

// build lays out the batch once all lengths are known.
func (b *sealBatch) build(recs []envelope.KeyRecord, in []*cryptopb.PlainBlock) {
	n := len(in)
	b.items, b.messages = make([]token.Item, n), make([][]byte, n)
	aad := make([]byte, 0, n*envelope.AADSize)
	ivs := make([]byte, n*envelope.IVSize)
	out := make([]byte, len(b.plain)+n*envelope.TagSize)
	b.message = make([]byte, 0, len(b.plain)+n*envelope.ContentMessageSize(0))
	from := 0
	for i, end := range b.ends {
		plain := b.plain[from:end:end]
		from = end
		at := len(aad)
		aad = b.ids[i].AppendAAD(aad)
		size := len(plain) + envelope.TagSize
		b.items[i] = token.Item{
			Key: int(in[i].Key),
			IV:  ivs[i*envelope.IVSize : (i+1)*envelope.IVSize : (i+1)*envelope.IVSize],
			AAD: aad[at:len(aad):len(aad)],
			In:  plain,
			Out: out[:size:size],
		}
		out = out[size:]
		at = len(b.message)
		b.message = envelope.AppendContentMessage(b.message, b.ids[i], plain)
		b.messages[i] = b.message[at:len(b.message):len(b.message)]
	}
}

func (b *sealBatch) clear() {
	clear(b.plain[:cap(b.plain)])
	clear(b.message)
}

// SealStep applies a step to a legal file and signs the next version. The
// client's identity is who took the step.
func (s *Server) SealStep(ctx context.Context, req *cryptopb.SealStepRequest) (*cryptopb.SealStepResponse, error) {
	if s.tokens.Seal == nil {
		return nil, notServed(RoleSeal)
	}
	if err := s.recordable(); err != nil {
		return nil, err
	}
	c := callOf(ctx)
	c.units = 1
	var previous *authz.LegalFile
	if len(req.Previous) > 0 {
		var err error
		if previous, err = s.sealKeys.LegalFile(req.Previous); err != nil {
			return nil, refuse(codes.FailedPrecondition, cryptopb.ReasonEvidenceInvalid, "the previous legal file does not verify under the pinned seal keys", err)
		}
	}
	step, err := authz.DecodeStep(req.Step)
	if err != nil {
		return nil, malformed("not a step of a legal file")
	}
	next, err := authz.Apply(previous, step, authz.Actor{Kind: authz.ByOperator, Name: c.identity}, s.now(), s.profile.Location())
	if err != nil {
		return nil, stepRefused(err)
	}
	if err := s.onSupersededFile(previous, next); err != nil {
		return nil, err
	}
	return s.sealFile(ctx, next)
}

// sealFile signs a version of a legal file and records that it did.
func (s *Server) sealFile(ctx context.Context, next *authz.LegalFile) (*cryptopb.SealStepResponse, error) {
	sealed, err := s.seal(ctx, next.Payload())
	if err != nil {
		return nil, err
	}
	file, err := s.sealKeys.LegalFile(sealed)
	if err != nil {
		return nil, refuse(codes.Internal, cryptopb.ReasonInternal, "the token's signature does not verify", err)
	}
	if err := s.recorder.sealed(envelope.SealEvent{
		At: s.now(), Client: callOf(ctx).identity, Kind: envelope.LegalFile, EAN: file.EAN(), Version: file.Version(), Digest: file.Digest(),
	}); err != nil {
		return nil, err
	}
	return &cryptopb.SealStepResponse{LegalFile: sealed}, nil
}

// SealSupplier signs the next version of a supplier record.
func (s *Server) SealSupplier(ctx context.Context, req *cryptopb.SealSupplierRequest) (*cryptopb.SealSupplierResponse, error) {
	if s.tokens.Seal == nil {
		return nil, notServed(RoleSeal)
	}
	if err := s.recordable(); err != nil {
		return nil, err
	}
	c := callOf(ctx)
	c.units = 1
	var previous *authz.Supplier
	if len(req.Previous) > 0 {
		var err error
		if previous, err = s.sealKeys.Supplier(req.Previous); err != nil {
			return nil, refuse(codes.FailedPrecondition, cryptopb.ReasonEvidenceInvalid, "the previous supplier record does not verify under the pinned seal keys", err)
		}
	}
	gln, err := meter.ParseGLN(req.Gln)
	if err != nil {
		return nil, malformed("%v", err)
	}
	facts := authz.SupplierFacts{GLN: gln, Name: req.Name, Scopes: req.Scopes, Suspended: req.Suspended}
	for i, in := range req.Certificates {
		if len(in.GetThumbprint()) != 32 {
			return nil, malformed("certificate %d: thumbprint of 32 bytes", i)
		}
		cert := authz.Certificate{Thumbprint: [32]byte(in.Thumbprint), NotAfter: time.UnixMicro(in.NotAfter).UTC()}
		if in.RevokedAt != 0 {
			cert.RevokedAt = time.UnixMicro(in.RevokedAt).UTC()
		}
		facts.Certificates = append(facts.Certificates, cert)
	}
	next, err := authz.NewSupplier(previous, facts, authz.Actor{Kind: authz.ByOperator, Name: c.identity}, s.now())
	if err != nil {
		return nil, stepRefused(err)
	}
	if err := s.onSupersededRecord(previous, next); err != nil {
		return nil, err
	}
	return s.sealRecord(ctx, next)
}

// sealRecord signs a version of a supplier record and records that it did.
func (s *Server) sealRecord(ctx context.Context, next *authz.Supplier) (*cryptopb.SealSupplierResponse, error) {
	sealed, err := s.seal(ctx, next.Payload())
	if err != nil {
		return nil, err
	}
	record, err := s.sealKeys.Supplier(sealed)
	if err != nil {
		return nil, refuse(codes.Internal, cryptopb.ReasonInternal, "the token's signature does not verify", err)
	}
	if err := s.recorder.sealed(envelope.SealEvent{
		At: s.now(), Client: callOf(ctx).identity, Kind: envelope.SupplierRecord, GLN: record.GLN(), Version: record.Version(), Digest: record.Digest(),
	}); err != nil {
		return nil, err
	}
	return &cryptopb.SealSupplierResponse{SupplierRecord: sealed}, nil
}

// stepRefused passes authz's text on: it tells the registrar what to do.
func stepRefused(err error) error {
	if errors.Is(err, authz.ErrClockBehind) {
		return refuse(codes.Unavailable, cryptopb.ReasonClockBehind, err.Error(), nil)
	}
	return refuse(codes.FailedPrecondition, cryptopb.ReasonStepRefused, err.Error(), nil)
}

func (s *Server) seal(ctx context.Context, payload []byte) ([]byte, error) {
	sealed, err := authz.Seal(payload, s.sealer)
	switch {
	case err == nil:
		return sealed, nil
	case errors.Is(err, authz.ErrSeal):
		return nil, refuse(codes.Internal, cryptopb.ReasonInternal, "cannot be sealed", err)
	}
	return nil, s.tokenError(ctx, RoleSeal, err)
}
