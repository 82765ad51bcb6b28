package cryptoserver

import (
	"context"
	"crypto/hmac"
	"errors"
	"time"

	"google.golang.org/grpc/codes"

	"kluis/authz"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/cryptoserver/token"
	"kluis/internal/authn"
	"kluis/meter"
)

// Names and addresses are sealed as blocks are, in a format of their own, and
// opened for employees only: authz.DecideIdentity says to whom. So that an
// address can be found without a list of addresses, each is stored beside a MAC
// of it, its blind index, which only this service computes: when it seals the
// address, and for the address that an employee's token names.

const (
	maxSealIdentities = 1000
	// maxOpenIdentities is more than one answer tells of.
	maxOpenIdentities = 128
)

func noIdentities() error {
	return refuse(codes.FailedPrecondition, cryptopb.ReasonMalformed, "the market profile says nothing of identities, so none is kept", nil)
}

func notForIdentities() error {
	return refuse(codes.PermissionDenied, cryptopb.ReasonNotPermitted, "names and addresses are for employees who serve customers, on an errand for them", nil)
}

// SealIdentity encrypts names and addresses. Everything is checked before
// anything is sealed, as in Seal.
func (s *Server) SealIdentity(ctx context.Context, req *cryptopb.SealIdentityRequest) (*cryptopb.SealIdentityResponse, error) {
	sealer := s.tokens.Seal
	if sealer == nil {
		return nil, notServed(RoleSeal)
	}
	n := len(req.Identities)
	c := callOf(ctx)
	c.units, c.blocks = n, n
	if n == 0 || n > maxSealIdentities {
		return nil, malformed("1 to %d identities in a call", maxSealIdentities)
	}
	code, ok := s.profile.IdentityCode()
	if !ok {
		return nil, noIdentities()
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
	b := newIdentityBatch(n)
	defer b.clear()
	seen := map[envelope.BlockID]bool{}
	for i, in := range req.Identities {
		if err := b.add(s.profile, code, in); err != nil {
			return nil, malformed("identity %d: %v", i, err)
		}
		once := b.ids[i]
		once.Version, once.KeyID = 0, [16]byte{}
		if seen[once] {
			return nil, malformed("identity %d: its metering point and occupancy are there twice", i)
		}
		seen[once] = true
		if !s.sealed.admit(once.EAN, map[fieldDay]bool{{code, once.Day}: true}, s.now()) {
			return nil, sealedTooOften()
		}
	}
	macs, err := sealer.RecordMAC(ctx, b.records())
	if err != nil {
		return nil, s.tokenError(ctx, RoleSeal, err)
	}
	for i := range macs {
		if !hmac.Equal(macs[i][:], b.recs[i].MAC[:]) {
			return nil, keyRecordInvalid(i, "is not what was minted: its MAC does not verify; nothing was sealed")
		}
		if s.erased(&b.recs[i]) {
			return nil, keyErased(i)
		}
	}
	if err := sealer.Seal(ctx, b.keys, b.items); err != nil {
		return nil, s.tokenError(ctx, RoleSeal, err)
	}
	if err := s.allSealed(ctx, b.items); err != nil {
		return nil, err
	}
	content, err := sealer.ContentMAC(ctx, b.contents)
	if err != nil {
		return nil, s.tokenError(ctx, RoleSeal, err)
	}
	index, err := sealer.IndexMAC(ctx, b.addresses)
	if err != nil {
		return nil, s.tokenError(ctx, RoleSeal, err)
	}
	resp := &cryptopb.SealIdentityResponse{Identities: make([]*cryptopb.SealedIdentityContent, n)}
	for i := range b.items {
		item, id := &b.items[i], &b.ids[i]
		out := &cryptopb.SealedIdentityContent{
			Ciphertext: envelope.AppendCiphertext(nil, envelope.Ciphertext{KeyID: id.KeyID, IV: item.IV, Body: item.Out}),
			ContentMac: content[i][:], BlindIndex: index[i][:],
		}
		if err := s.recorder.sealed(envelope.SealEvent{
			At: s.now(), Client: c.identity, Kind: envelope.BlocksSealed, EAN: id.EAN,
			Blocks: []envelope.SealedDigest{{Field: id.Field, Day: id.Day, Version: id.Version, Digest: envelope.CiphertextDigest(out.Ciphertext)}},
		}); err != nil {
			return nil, err
		}
		resp.Identities[i] = out
	}
	s.metrics.blocks.WithLabelValues("sealed").Add(float64(n))
	return resp, nil
}

// identityBatch is the flat memory of one SealIdentity call, parallel slices.
type identityBatch struct {
	ids       []envelope.BlockID
	recs      []envelope.KeyRecord
	keys      []token.WrappedKey
	items     []token.Item
	plain     []byte // all plaintexts, one after another
	contents  [][]byte
	addresses [][]byte
}

func newIdentityBatch(n int) *identityBatch {
	// So that no copy is left behind by growing.
	return &identityBatch{plain: make([]byte, 0, n*envelope.PersonSize)}
}

// add checks and lays out one identity. Its errors hold nothing of the person.
func (b *identityBatch) add(p *meter.Profile, code meter.FieldCode, in *cryptopb.PlainIdentity) error {
	rec, ok := parseKey(in.GetKey())
	if !ok {
		return errors.New("not a key record")
	}
	if rec.Class != meter.Identity || rec.Occupancy <= 0 || rec.Month != rec.Occupancy.Month() {
		return errors.New("its data key is not for an identity, of a customer")
	}
	if in.Version == 0 {
		return errors.New("no version")
	}
	person, err := personFromWire(p, in.Person)
	if err != nil {
		return err
	}
	at := len(b.plain)
	if b.plain, err = envelope.AppendPerson(b.plain, &person); err != nil {
		return err
	}
	plain := b.plain[at:len(b.plain):len(b.plain)]
	id := envelope.BlockID{EAN: rec.EAN, Field: code, Day: rec.Occupancy, Version: in.Version, KeyID: rec.ID}
	b.ids, b.recs = append(b.ids, id), append(b.recs, rec)
	b.items = append(b.items, token.Item{
		Key: len(b.keys), IV: make([]byte, envelope.IVSize), AAD: id.AppendAAD(nil), In: plain, Out: make([]byte, len(plain)+envelope.TagSize),
	})
	b.keys = append(b.keys, token.WrappedKey{ID: rec.ID, Epoch: rec.Epoch, Wrapped: rec.Wrapped})
	b.contents = append(b.contents, envelope.ContentMessage(id, plain))
	b.addresses = append(b.addresses, envelope.AddressMessage(person.Address.Postcode, person.Address.HouseNumber))
	return nil
}

func (b *identityBatch) records() [][]byte {
	out := make([][]byte, len(b.recs))
	for i := range b.recs {
		out[i] = b.recs[i].Message()
	}
	return out
}

func (b *identityBatch) clear() {
	clear(b.plain[:cap(b.plain)])
	for _, m := range b.contents {
		clear(m)
	}
	for _, m := range b.addresses {
		clear(m)
	}
}

func personFromWire(p *meter.Profile, in *cryptopb.Person) (meter.Person, error) {
	out := meter.Person{Name: in.GetName(), Address: meter.Address{Street: in.GetStreet(), Addition: in.GetAddition(), City: in.GetCity()}}
	var err error
	if out.Address.HouseNumber, err = meter.HouseNumberFromInt(int64(in.GetHouseNumber())); err != nil {
		return meter.Person{}, err
	}
	if out.Address.Postcode, err = p.ParsePostcode(in.GetPostcode()); err != nil {
		return meter.Person{}, err
	}
	if err := out.Check(); err != nil {
		return meter.Person{}, err
	}
	return out, nil
}

func personToWire(p *meter.Person) *cryptopb.Person {
	a := &p.Address
	return &cryptopb.Person{
		Name: p.Name, Street: a.Street, HouseNumber: uint32(a.HouseNumber.Int()), Addition: a.Addition, Postcode: a.Postcode.String(), City: a.City,
	}
}

// FindIndex computes the blind index of the address in the errand of an
// employee's token. No address comes from the caller, so what a gateway can look
// for is what employees are looking for.
func (s *Server) FindIndex(ctx context.Context, req *cryptopb.FindIndexRequest) (*cryptopb.FindIndexResponse, error) {
	sealer := s.tokens.Seal
	if sealer == nil {
		return nil, notServed(RoleSeal)
	}
	callOf(ctx).units = 1
	now := s.now()
	caller, err := s.caller(ctx, req.AccessToken, req.SupplierRecord, authn.ScopeStaff, now)
	if err != nil {
		return nil, err
	}
	if err := s.sameProfile(req.ProfileDigest); err != nil {
		return nil, err
	}
	if err := s.current(); err != nil {
		return nil, err
	}
	postcode, number, err := authz.MayFind(caller, s.profile, now)
	if err != nil {
		return nil, notForIdentities()
	}
	message := envelope.AddressMessage(postcode, number)
	defer clear(message)
	macs, err := sealer.IndexMAC(ctx, [][]byte{message})
	if err != nil {
		return nil, s.tokenError(ctx, RoleSeal, err)
	}
	return &cryptopb.FindIndexResponse{BlindIndex: macs[0][:]}, nil
}

// identityUnit is one metering point of an OpenIdentity call.
type identityUnit struct {
	out   *cryptopb.OpenedIdentity
	file  *authz.LegalFile
	grant authz.IdentityGrant
	id    envelope.BlockID
	item  int // in the batch; -1: nothing is opened
}

// OpenIdentity decrypts name and address of who lives at metering points today,
// for the employee whose token it is. It tells no more than the errand is for:
// of a search the address only, and only of what is at the address searched
// for. Nobody's word is taken for who lives there and since when: the legal
// file says so.
//
// There is a receipt of what is told, and of nothing else: what does not leave
// was not shown to anybody.
func (s *Server) OpenIdentity(ctx context.Context, req *cryptopb.OpenIdentityRequest) (*cryptopb.OpenIdentityResponse, error) {
	if s.tokens.Open == nil {
		return nil, notServed(RoleOpen)
	}
	n := len(req.Units)
	c := callOf(ctx)
	c.units, c.blocks = n, n
	if n == 0 || n > maxOpenIdentities {
		return nil, malformed("1 to %d metering points in a call", maxOpenIdentities)
	}
	code, ok := s.profile.IdentityCode()
	if !ok {
		return nil, noIdentities()
	}
	now := s.now()
	caller, err := s.caller(ctx, req.AccessToken, req.SupplierRecord, authn.ScopeStaff, now)
	if err != nil {
		return nil, err
	}
	employee := caller.Employee()
	if employee == nil {
		return nil, notForIdentities()
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

	units := make([]identityUnit, n)
	var keys []token.WrappedKey
	var items []token.Item
	var eans []int64
	plain := make([]byte, 0, n*envelope.PersonSize)
	defer func() { clear(plain[:cap(plain)]) }()
	for i, in := range req.Units {
		u := &units[i]
		u.item = -1
		ct, rec, err := s.authoriseIdentity(u, caller, code, in, now)
		if err != nil {
			return nil, err
		}
		if ct == nil {
			continue
		}
		at := len(plain)
		plain = plain[:at+envelope.PersonSize]
		u.item = len(items)
		items = append(items, token.Item{
			Key: len(keys), IV: ct.IV, AAD: u.id.AppendAAD(nil), In: ct.Body, Out: plain[at : at+envelope.PersonSize : at+envelope.PersonSize],
		})
		keys = append(keys, token.WrappedKey{ID: ct.KeyID, Epoch: rec.Epoch, Wrapped: rec.Wrapped})
		eans = append(eans, u.id.EAN.Int64())
	}
	if len(items) > 0 {
		if err := s.points.admit(caller.TokenID(), caller.ExpiresAt(), eans, now); err != nil {
			return nil, err
		}
		if err := s.tokens.Open.Open(ctx, keys, items); err != nil {
			return nil, s.tokenError(ctx, RoleOpen, err)
		}
	}
	var receipts []envelope.Receipt
	var told []*cryptopb.OpenedIdentity
	for i := range units {
		u := &units[i]
		if u.item < 0 {
			continue
		}
		item := &items[u.item]
		if errors.Is(item.Err, token.ErrUnknownEpoch) && s.control.Activated(keys[item.Key].Epoch) {
			return nil, s.tokenError(ctx, RoleOpen, item.Err)
		}
		if s.tell(u, item) {
			receipts = append(receipts, s.identityReceipt(u, caller, req.Units[i], now))
			told = append(told, u.out)
		}
	}
	encoded, err := s.recorder.opened(receipts)
	if err != nil {
		return nil, err
	}
	for i := range told {
		told[i].Receipt = encoded[i]
	}
	resp := &cryptopb.OpenIdentityResponse{Units: make([]*cryptopb.OpenedIdentity, n)}
	for i := range units {
		resp.Units[i] = units[i].out
		if resp.Units[i].Status == cryptopb.IdentityStatus_IDENTITY_STATUS_DAMAGED {
			c.damaged++
		}
	}
	c.refused = n - len(told) - c.damaged
	return resp, nil
}

// authoriseIdentity decides on one metering point. The ciphertext is nil when
// nothing is to be opened; the unit's status then says why. Only a malformed
// request is an error.
func (s *Server) authoriseIdentity(u *identityUnit, caller authn.Caller, code meter.FieldCode, in *cryptopb.IdentityUnit, now time.Time) (*envelope.Ciphertext, *envelope.KeyRecord, error) {
	u.out = &cryptopb.OpenedIdentity{}
	deny := func(status cryptopb.IdentityStatus) (*envelope.Ciphertext, *envelope.KeyRecord, error) {
		u.out.Status = status
		return nil, nil, nil
	}
	if len(in.GetInteractionId()) != 16 {
		return nil, nil, malformed("interaction id of 16 bytes")
	}
	var err error
	if u.file, err = s.sealKeys.LegalFile(in.LegalFile); err != nil {
		s.metrics.units.WithLabelValues("evidence_invalid").Inc()
		return deny(cryptopb.IdentityStatus_IDENTITY_STATUS_EVIDENCE_INVALID)
	}
	if s.files.outdated(u.file.EAN(), sealedAt(u.file), now) {
		s.metrics.units.WithLabelValues("evidence_outdated").Inc()
		return deny(cryptopb.IdentityStatus_IDENTITY_STATUS_EVIDENCE_INVALID)
	}
	if s.supersededFile(u.file) {
		return deny(cryptopb.IdentityStatus_IDENTITY_STATUS_EVIDENCE_INVALID)
	}
	if !onIdentityErrand(caller.Employee(), u.file.EAN()) {
		return deny(cryptopb.IdentityStatus_IDENTITY_STATUS_NOT_PERMITTED)
	}
	switch u.grant, err = authz.DecideIdentity(caller, u.file, s.profile, now); {
	case errors.Is(err, authz.ErrNoIdentity):
		return deny(cryptopb.IdentityStatus_IDENTITY_STATUS_NOT_OF_TODAY)
	case errors.Is(err, authz.ErrNotPermitted):
		return deny(cryptopb.IdentityStatus_IDENTITY_STATUS_NOT_PERMITTED)
	case err != nil:
		return nil, nil, refuse(codes.Internal, cryptopb.ReasonInternal, "no decision", err)
	}
	// Of nobody else: not of who lived there before, whatever the database holds.
	if meter.Day(in.Day) != u.grant.Day() {
		return deny(cryptopb.IdentityStatus_IDENTITY_STATUS_NOT_OF_TODAY)
	}
	damaged := func() (*envelope.Ciphertext, *envelope.KeyRecord, error) {
		s.metrics.blocks.WithLabelValues("damaged").Inc()
		return deny(cryptopb.IdentityStatus_IDENTITY_STATUS_DAMAGED)
	}
	erased := func() (*envelope.Ciphertext, *envelope.KeyRecord, error) {
		s.metrics.blocks.WithLabelValues("erased").Inc()
		return deny(cryptopb.IdentityStatus_IDENTITY_STATUS_ERASED)
	}
	ct, err := envelope.ParseCiphertext(in.Ciphertext)
	if err != nil || len(ct.Body) != envelope.PersonSize+envelope.TagSize || in.Version == 0 {
		return damaged()
	}
	if s.control.ErasedByName(ct.KeyID) {
		return erased()
	}
	rec, ok := parseKey(in.Key)
	if !ok || rec.EAN != u.file.EAN() || rec.Class != meter.Identity || rec.Occupancy != u.grant.Day() || rec.Month != u.grant.Day().Month() || rec.ID != ct.KeyID {
		return damaged()
	}
	if s.control.Destroyed(rec.Epoch) {
		return erased()
	}
	u.id = envelope.BlockID{EAN: u.file.EAN(), Field: code, Day: u.grant.Day(), Version: in.Version, KeyID: ct.KeyID}
	return &ct, &rec, nil
}

// tell puts into the answer what the grant lets out of what was opened.
func (s *Server) tell(u *identityUnit, item *token.Item) bool {
	person, err := meter.Person{}, item.Err
	if err == nil {
		person, err = envelope.ParsePerson(item.Out)
	}
	if err != nil {
		s.metrics.blocks.WithLabelValues("damaged").Inc()
		u.out.Status = cryptopb.IdentityStatus_IDENTITY_STATUS_DAMAGED
		return false
	}
	person, ok := u.grant.Tell(person)
	if !ok {
		s.metrics.blocks.WithLabelValues("outside_grant").Inc()
		u.out.Status = cryptopb.IdentityStatus_IDENTITY_STATUS_ELSEWHERE
		return false
	}
	s.metrics.blocks.WithLabelValues("opened").Inc()
	u.out.Status, u.out.Person = cryptopb.IdentityStatus_IDENTITY_STATUS_GIVEN, personToWire(&person)
	return true
}

func (s *Server) identityReceipt(u *identityUnit, caller authn.Caller, in *cryptopb.IdentityUnit, now time.Time) envelope.Receipt {
	e := caller.Employee()
	r := envelope.Receipt{
		At: now, InteractionID: [16]byte(in.InteractionId), Supplier: caller.Supplier(), TokenID: caller.TokenID(),
		EAN: u.file.EAN(), Purpose: meter.CustomerService, LegalFile: u.file.Digest(), FileVersion: u.file.Version(), Profile: s.digest,
		Opened:  1,
		Content: envelope.ContentDigest([]envelope.Opened{{ID: u.id, Basis: meter.CustomerServiceBasis}}),
	}
	r.Employee = envelope.EmployeeDigest(r.TokenID, e.Subject, e.Errand.Reason)
	return r
}
