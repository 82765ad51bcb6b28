package client

import (
	"context"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

// Mint makes data keys, as asked, in order.
func (c *Client) Mint(ctx context.Context, specs []envelope.KeySpec) ([]envelope.KeyRecord, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	in := &cryptopb.MintRequest{Keys: make([]*cryptopb.MintKey, len(specs))}
	for i, s := range specs {
		in.Keys[i] = &cryptopb.MintKey{
			Ean: uint64(s.EAN.Int64()), Class: uint32(s.Class), Month: int32(s.Month), Occupancy: int32(s.Occupancy),
		}
	}
	resp, err := c.mint.Mint(ctx, in)
	if err != nil {
		return nil, fromGRPC(err)
	}
	if len(resp.Keys) != len(specs) {
		return nil, internal("the server answered with another number of keys")
	}
	out := make([]envelope.KeyRecord, len(specs))
	for i, k := range resp.Keys {
		if len(k.GetId()) != 16 || len(k.GetMac()) != 32 || k.Ean != in.Keys[i].Ean || k.Class != in.Keys[i].Class ||
			k.Month != in.Keys[i].Month || k.Occupancy != in.Keys[i].Occupancy {
			return nil, internal("the server answered with another key than asked for")
		}
		out[i] = envelope.KeyRecord{
			ID: [16]byte(k.Id), EAN: specs[i].EAN, Class: specs[i].Class, Month: specs[i].Month,
			Occupancy: specs[i].Occupancy, Epoch: k.KekEpoch, Wrapped: k.Wrapped, MAC: [32]byte(k.Mac),
		}
	}
	return out, nil
}

// Seal encrypts blocks of one metering point, as given, in order. All or
// nothing is sealed. A client that seals faster than the servers let it waits.
func (c *Client) Seal(ctx context.Context, ean meter.EAN, keys []envelope.KeyRecord, blocks []envelope.PlainBlock) ([]envelope.SealedContent, error) {
	in := &cryptopb.SealRequest{
		Ean:    uint64(ean.Int64()),
		Keys:   make([]*cryptopb.DataKey, len(keys)),
		Blocks: make([]*cryptopb.PlainBlock, len(blocks)),
	}
	for i := range keys {
		in.Keys[i] = keyToWire(&keys[i])
	}
	for i := range blocks {
		in.Blocks[i] = plainToWire(&blocks[i])
	}
	var resp *cryptopb.SealResponse
	err := whileLimited(ctx, func() error {
		ctx, cancel := c.bound(ctx)
		defer cancel()
		var err error
		resp, err = c.seal.Seal(ctx, in)
		return fromGRPC(err)
	})
	if err != nil {
		return nil, err
	}
	if len(resp.Blocks) != len(blocks) {
		return nil, internal("the server answered with another number of blocks")
	}
	out := make([]envelope.SealedContent, len(blocks))
	for i, b := range resp.Blocks {
		if len(b.GetContentMac()) != 32 {
			return nil, internal("the server answered without a content MAC")
		}
		out[i] = envelope.SealedContent{Ciphertext: b.Ciphertext, ContentMAC: [32]byte(b.ContentMac)}
	}
	return out, nil
}

func plainToWire(b *envelope.PlainBlock) *cryptopb.PlainBlock {
	w := &cryptopb.PlainBlock{
		Field: uint32(b.Field), Day: int32(b.Block.Day), Resolution: uint32(b.Block.Resolution),
		Version: b.Version, Key: uint32(b.Key), Start: int64(b.Block.Start),
		Values: make([]int64, len(b.Block.Values)),
	}
	for i, v := range b.Block.Values {
		w.Values[i] = int64(v)
	}
	for _, q := range b.Block.Quality {
		if q != meter.AsProvided {
			w.Quality = make([]byte, len(b.Block.Quality))
			for i, q := range b.Block.Quality {
				w.Quality[i] = byte(q)
			}
			break
		}
	}
	return w
}

func keyToWire(k *envelope.KeyRecord) *cryptopb.DataKey {
	return &cryptopb.DataKey{
		Id: k.ID[:], Ean: uint64(k.EAN.Int64()), Class: uint32(k.Class), Month: int32(k.Month),
		Occupancy: int32(k.Occupancy), KekEpoch: k.Epoch, Wrapped: k.Wrapped, Mac: k.MAC[:],
	}
}

// SealStep applies a step to a legal file (nil to register a metering point)
// and returns the next version, sealed.
func (c *Client) SealStep(ctx context.Context, previous []byte, step authz.Step) ([]byte, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	resp, err := c.sealKey.SealStep(ctx, &cryptopb.SealStepRequest{Previous: previous, Step: step.Encode()})
	if err != nil {
		return nil, fromGRPC(err)
	}
	return resp.LegalFile, nil
}

// TakeStepRequest is a step for whoever an access token names.
type TakeStepRequest struct {
	AccessToken    string
	SupplierRecord []byte   // sealed, of the token's client
	Profile        [32]byte // digest of the market profile that was decided with
	Previous       []byte   // sealed legal file
	Step           authz.Step
}

// TakeStep applies the step to the legal file, if whoever the token names may
// take it, and returns the next version, sealed; to be stored by the caller, or
// nowhere: no server keeps it, so a call that failed left nothing behind, and may
// be made again.
//
// Beside this package's errors there are those of authz.Permit: ErrNoRelation,
// ErrNotPermitted, ErrConsentUnknown and its like, ErrStep. Their text after the
// first colon says what to do.
//
// Unlike SealStep it needs a server that knows the control feed: among others a
// certificate revoked counts at once.
func (c *Client) TakeStep(ctx context.Context, r TakeStepRequest) ([]byte, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	resp, err := c.seal.TakeStep(ctx, &cryptopb.TakeStepRequest{
		AccessToken: r.AccessToken, SupplierRecord: r.SupplierRecord, ProfileDigest: r.Profile[:],
		Previous: r.Previous, Step: r.Step.Encode(),
	})
	if err != nil {
		return nil, fromGRPC(err)
	}
	return resp.LegalFile, nil
}

// SealSupplier returns the next version of a supplier record (previous is nil
// for a new supplier), sealed.
func (c *Client) SealSupplier(ctx context.Context, previous []byte, facts authz.SupplierFacts) ([]byte, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	in := &cryptopb.SealSupplierRequest{
		Previous: previous, Gln: facts.GLN.String(), Name: facts.Name, Scopes: facts.Scopes, Suspended: facts.Suspended,
	}
	for i := range facts.Certificates {
		cert := &facts.Certificates[i]
		w := &cryptopb.SupplierCertificate{Thumbprint: cert.Thumbprint[:], NotAfter: cert.NotAfter.UnixMicro()}
		if !cert.RevokedAt.IsZero() {
			w.RevokedAt = cert.RevokedAt.UnixMicro()
		}
		in.Certificates = append(in.Certificates, w)
	}
	resp, err := c.sealKey.SealSupplier(ctx, in)
	if err != nil {
		return nil, fromGRPC(err)
	}
	return resp.SupplierRecord, nil
}

// TakeSupplierStepRequest is a suspension of a supplier, or its end, for the
// employee whom an access token names.
type TakeSupplierStepRequest struct {
	AccessToken    string
	SupplierRecord []byte // sealed, of the token's client: the grid operator's own
	Previous       []byte // sealed record of the supplier
	Suspend        bool   // else resume
}

// TakeSupplierStep suspends or resumes the supplier, if the employee's token is
// for that, and returns the next version of its record, sealed; to be stored by
// the caller, or nowhere, as of TakeStep. Beside this package's errors there is
// authz.ErrNotPermitted, whose text after the first colon says what to do.
func (c *Client) TakeSupplierStep(ctx context.Context, r TakeSupplierStepRequest) ([]byte, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	resp, err := c.seal.TakeSupplierStep(ctx, &cryptopb.TakeSupplierStepRequest{
		AccessToken: r.AccessToken, SupplierRecord: r.SupplierRecord, Previous: r.Previous, Suspend: r.Suspend,
	})
	if err != nil {
		return nil, fromGRPC(err)
	}
	return resp.SupplierRecord, nil
}

// SignToken returns an access token for the supplier of a sealed record, bound
// to a certificate that the record accepts, and when it expires (UTC). The
// lifetime is whole seconds, at most 300.
func (c *Client) SignToken(ctx context.Context, record []byte, thumbprint [32]byte, scopes []string, lifetime time.Duration) (string, time.Time, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	resp, err := c.sign.SignToken(ctx, &cryptopb.SignTokenRequest{
		SupplierRecord: record, Thumbprint: thumbprint[:], Scopes: scopes, LifetimeSeconds: uint32(lifetime / time.Second),
	})
	if err != nil {
		return "", time.Time{}, fromGRPC(err)
	}
	return resp.AccessToken, time.UnixMicro(resp.ExpiresAt).UTC(), nil
}

// SignStaffToken returns an access token for one errand of the employee whom an
// ID token names, bound to a certificate that the grid operator's sealed record
// accepts, and when it expires (UTC). The errand is a JSON text (RFC 9396); the
// lifetime is whole seconds, at most 300.
func (c *Client) SignStaffToken(ctx context.Context, record []byte, thumbprint [32]byte, idToken, errand string, lifetime time.Duration) (string, time.Time, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	resp, err := c.sign.SignStaffToken(ctx, &cryptopb.SignStaffTokenRequest{
		SupplierRecord: record, Thumbprint: thumbprint[:], IdToken: idToken, AuthorizationDetails: errand, LifetimeSeconds: uint32(lifetime / time.Second),
	})
	if err != nil {
		return "", time.Time{}, fromGRPC(err)
	}
	return resp.AccessToken, time.UnixMicro(resp.ExpiresAt).UTC(), nil
}
