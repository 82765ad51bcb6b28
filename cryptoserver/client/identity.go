package client

import (
	"context"
	"errors"

	"kluis/authz"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

// ErrNoIdentity: the identity is not of who lives there today, or is at another
// address than the errand's.
var ErrNoIdentity = errors.New("not of today's customer, or at another address")

// SealIdentities encrypts names and addresses, as given, in order. All or nothing
// is sealed.
func (c *Client) SealIdentities(ctx context.Context, in []envelope.PlainIdentity) ([]envelope.IdentityContent, error) {
	req := &cryptopb.SealIdentityRequest{Identities: make([]*cryptopb.PlainIdentity, len(in))}
	for i := range in {
		p := &in[i].Person
		req.Identities[i] = &cryptopb.PlainIdentity{Key: keyToWire(&in[i].Key), Version: in[i].Version, Person: &cryptopb.Person{
			Name: p.Name, Street: p.Address.Street, HouseNumber: uint32(p.Address.HouseNumber.Int()), Addition: p.Address.Addition,
			Postcode: p.Address.Postcode.String(), City: p.Address.City,
		}}
	}
	var resp *cryptopb.SealIdentityResponse
	err := whileLimited(ctx, func() error {
		ctx, cancel := c.bound(ctx)
		defer cancel()
		var err error
		resp, err = c.seal.SealIdentity(ctx, req)
		return fromGRPC(err)
	})
	if err != nil {
		return nil, err
	}
	if len(resp.Identities) != len(in) {
		return nil, internal("the server answered with another number of identities")
	}
	out := make([]envelope.IdentityContent, len(in))
	for i, o := range resp.Identities {
		if len(o.GetContentMac()) != 32 || len(o.GetBlindIndex()) != 32 {
			return nil, internal("the server answered without a MAC")
		}
		out[i] = envelope.IdentityContent{
			SealedContent: envelope.SealedContent{Ciphertext: o.Ciphertext, ContentMAC: [32]byte(o.ContentMac)}, BlindIndex: [32]byte(o.BlindIndex),
		}
	}
	return out, nil
}

// FindIndex returns the blind index of the address in the errand of an employee's
// access token. authz.ErrNotPermitted: the token is for no search.
func (c *Client) FindIndex(ctx context.Context, accessToken string, supplierRecord []byte, profile [32]byte) ([32]byte, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	resp, err := c.seal.FindIndex(ctx, &cryptopb.FindIndexRequest{AccessToken: accessToken, SupplierRecord: supplierRecord, ProfileDigest: profile[:]})
	if err != nil {
		return [32]byte{}, fromGRPC(err)
	}
	if len(resp.BlindIndex) != 32 {
		return [32]byte{}, internal("the server answered without a MAC")
	}
	return [32]byte(resp.BlindIndex), nil
}

// IdentityRequest asks a cryptoserver who lives at metering points, for an
// employee.
type IdentityRequest struct {
	AccessToken    string
	SupplierRecord []byte   // sealed, of the token's client
	Profile        [32]byte // digest of the market profile that was decided with
	Units          []IdentityUnit
}

// IdentityUnit is one metering point.
type IdentityUnit struct {
	InteractionID [16]byte
	EAN           meter.EAN
	LegalFile     []byte // sealed, of EAN
	Identity      envelope.SealedIdentity
}

// OpenedIdentity is what came of an IdentityUnit.
type OpenedIdentity struct {
	// Err is authz.ErrNotPermitted, ErrNoIdentity, ErrEvidence, ErrDamaged or
	// ErrErased; then the rest is empty.
	Err     error
	Person  meter.Person // without the name on an errand to find
	Receipt []byte       // canonical (envelope.ParseReceipt)
}

// OpenIdentities returns one OpenedIdentity per unit, in order.
func (c *Client) OpenIdentities(ctx context.Context, r IdentityRequest) ([]OpenedIdentity, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	in := &cryptopb.OpenIdentityRequest{
		AccessToken: r.AccessToken, SupplierRecord: r.SupplierRecord, ProfileDigest: r.Profile[:], Units: make([]*cryptopb.IdentityUnit, len(r.Units)),
	}
	for i := range r.Units {
		u := &r.Units[i]
		in.Units[i] = &cryptopb.IdentityUnit{
			LegalFile: u.LegalFile, InteractionId: u.InteractionID[:], Day: int32(u.Identity.Day), Version: u.Identity.Version, Ciphertext: u.Identity.Ciphertext,
		}
		if u.Identity.Key.ID != [16]byte{} {
			in.Units[i].Key = keyToWire(&u.Identity.Key)
		}
	}
	resp, err := c.open.OpenIdentity(ctx, in)
	if err != nil {
		return nil, fromGRPC(err)
	}
	if len(resp.Units) != len(r.Units) {
		return nil, internal("the server answered for another number of metering points")
	}
	out := make([]OpenedIdentity, len(resp.Units))
	for i, u := range resp.Units {
		if out[i], err = openedIdentity(u, &r.Units[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

var identityErrors = map[cryptopb.IdentityStatus]error{
	cryptopb.IdentityStatus_IDENTITY_STATUS_NOT_PERMITTED:    authz.ErrNotPermitted,
	cryptopb.IdentityStatus_IDENTITY_STATUS_EVIDENCE_INVALID: ErrEvidence,
	cryptopb.IdentityStatus_IDENTITY_STATUS_NOT_OF_TODAY:     ErrNoIdentity,
	cryptopb.IdentityStatus_IDENTITY_STATUS_ELSEWHERE:        ErrNoIdentity,
	cryptopb.IdentityStatus_IDENTITY_STATUS_DAMAGED:          ErrDamaged,
	cryptopb.IdentityStatus_IDENTITY_STATUS_ERASED:           ErrErased,
}

func openedIdentity(u *cryptopb.OpenedIdentity, asked *IdentityUnit) (OpenedIdentity, error) {
	if u.GetStatus() != cryptopb.IdentityStatus_IDENTITY_STATUS_GIVEN {
		err, known := identityErrors[u.GetStatus()]
		if !known {
			return OpenedIdentity{}, internal("the server answered with an unknown status")
		}
		return OpenedIdentity{Err: err}, nil
	}
	// The receipt goes into the access log as it is, so it must be of what was
	// asked.
	r, err := envelope.ParseReceipt(u.Receipt)
	if err != nil || r.InteractionID != asked.InteractionID || r.EAN != asked.EAN {
		return OpenedIdentity{}, internal("the server's receipt is not of what was asked")
	}
	p := u.GetPerson()
	out := OpenedIdentity{Receipt: u.Receipt, Person: meter.Person{
		Name: p.GetName(), Address: meter.Address{Street: p.GetStreet(), Addition: p.GetAddition(), City: p.GetCity()},
	}}
	var err1, err2 error
	out.Person.Address.HouseNumber, err1 = meter.HouseNumberFromInt(int64(p.GetHouseNumber()))
	out.Person.Address.Postcode, err2 = meter.ParsePostcode(p.GetPostcode())
	if err1 != nil || err2 != nil {
		return OpenedIdentity{}, internal("the server answered without an address")
	}
	return out, nil
}
