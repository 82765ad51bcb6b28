package main

import (
	"context"
	"errors"
	"fmt"

	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/envelope"
	"kluis/internal/postgres"
	"kluis/meter"
	"kluis/server"
)

// identities asks the database and the pool of cryptoservers.
type identities struct {
	db      *postgres.Gateway
	pool    *client.Client
	profile [32]byte
}

func (i identities) Sealed(ctx context.Context, of []server.Customer) ([]*envelope.SealedIdentity, error) {
	at := make([]postgres.IdentityAt, len(of))
	for n, c := range of {
		at[n] = postgres.IdentityAt{EAN: c.EAN, Day: c.From}
	}
	return i.db.Identities(ctx, at)
}

func (i identities) AtAddress(ctx context.Context, blindIndex [32]byte, after meter.EAN, limit int) ([]meter.EAN, error) {
	return i.db.AtAddress(ctx, blindIndex, after, limit)
}

func (i identities) BlindIndex(ctx context.Context, token string, supplier []byte) ([32]byte, error) {
	index, err := i.pool.FindIndex(ctx, token, supplier, i.profile)
	if err != nil {
		return [32]byte{}, openError(err)
	}
	return index, nil
}

func (i identities) Open(ctx context.Context, r server.IdentityRequest) ([]server.OpenedIdentity, error) {
	units := make([]client.IdentityUnit, len(r.Units))
	for n, u := range r.Units {
		units[n] = client.IdentityUnit{InteractionID: r.Interaction, EAN: u.EAN, LegalFile: u.LegalFile, Identity: u.Identity}
	}
	opened, err := i.pool.OpenIdentities(ctx, client.IdentityRequest{AccessToken: r.Token, SupplierRecord: r.Supplier, Profile: i.profile, Units: units})
	if err != nil {
		return nil, openError(err)
	}
	out := make([]server.OpenedIdentity, len(opened))
	for n, o := range opened {
		out[n] = server.OpenedIdentity{Person: o.Person, Receipt: o.Receipt, Err: identityError(o.Err)}
	}
	return out, nil
}

func identityError(err error) error {
	for _, k := range []struct{ from, to error }{
		{authz.ErrNotPermitted, authz.ErrNotPermitted},
		{client.ErrNoIdentity, server.ErrIdentityElsewhere},
		{client.ErrDamaged, server.ErrIdentityDamaged},
		{client.ErrErased, server.ErrIdentityErased},
		{client.ErrEvidence, server.ErrEvidenceRefused},
	} {
		if errors.Is(err, k.from) {
			return fmt.Errorf("%w: %w", k.to, err)
		}
	}
	return err
}
