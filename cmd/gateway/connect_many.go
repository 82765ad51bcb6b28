package main

import (
	"context"
	"fmt"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/internal/postgres"
	"kluis/meter"
	"kluis/server"
)

// connectMany is the way to the same back ends for many metering points at once.
func connectMany(db *postgres.Gateway, pool *client.Client, profile *meter.Profile) server.Many {
	m := many{db, pool, profile.Digest()}
	return server.Many{Facts: m, Rows: m, Opener: m, Recorder: db, Manifests: m}
}

type many struct {
	*postgres.Gateway
	pool    *client.Client
	profile [32]byte
}

func (m many) CandidateFiles(ctx context.Context, gln meter.GLN, after meter.EAN, limit int) ([]server.Candidate, error) {
	found, err := m.Gateway.CandidateFiles(ctx, gln, after, limit)
	return candidates(found), err
}

func (m many) BlocksOfMany(ctx context.Context, grants []authz.Grant, asOf time.Time) ([]server.PointBlocks, error) {
	found, err := m.Gateway.BlocksOfMany(ctx, grants, asOf)
	out := make([]server.PointBlocks, len(found))
	for i, p := range found {
		out[i] = server.PointBlocks(p)
	}
	return out, err
}

func (m many) OpenMany(ctx context.Context, r server.OpenManyRequest) ([]server.OpenedUnit, error) {
	units := make([]client.Unit, len(r.Units))
	for i, u := range r.Units {
		units[i] = client.Unit{InteractionID: r.Interaction, LegalFile: u.LegalFile, Request: u.Request, Keys: u.Keys, Blocks: u.Blocks}
	}
	opened, err := m.pool.Open(ctx, client.OpenRequest{AccessToken: r.Token, SupplierRecord: r.Supplier, Profile: m.profile, Units: units})
	if err != nil {
		return nil, openError(err)
	}
	if len(opened) != len(units) {
		return nil, fmt.Errorf("%d metering points were opened of %d", len(opened), len(units))
	}
	out := make([]server.OpenedUnit, len(opened))
	for i, u := range opened {
		if u.Err != nil {
			out[i].Err = openError(u.Err)
			continue
		}
		out[i].Opened = openedUnit(u)
	}
	return out, nil
}

func (m many) SignManifest(ctx context.Context, r server.ManifestRequest) (string, error) {
	jws, err := m.pool.SignManifest(ctx, client.ManifestRequest{
		AccessToken: r.Token, SupplierRecord: r.Supplier, InteractionID: r.Interaction, Query: r.Query, Format: r.Format, Digest: r.Digest,
		Points: r.Points, Given: r.Given, Partly: r.Partly, Withheld: r.Withheld, Failed: r.Failed, LeftOut: r.LeftOut,
		Expected: r.Expected, Delivered: r.Delivered, Parts: r.Parts,
	})
	if err != nil {
		return "", openError(err)
	}
	return jws, nil
}
