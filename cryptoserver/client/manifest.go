package client

import (
	"context"

	"kluis/cryptoserver/cryptopb"
)

// ManifestRequest is what came of a stream of readings, for the supplier whose
// token it is.
type ManifestRequest struct {
	AccessToken    string
	SupplierRecord []byte // sealed, of the token's subject
	InteractionID  [16]byte
	Query          [32]byte // digest of what was asked
	Format         string   // ndjson, csv
	Digest         [32]byte // of the lines of all metering points

	// Points is the sum of Given, Partly, Withheld and Failed.
	Points, Given, Partly, Withheld, Failed, LeftOut uint32
	Expected, Delivered                              uint64 // values; no more delivered than expected
	Parts                                            uint32 // of which the stream was put together, from 1
}

// SignManifest has a manifest signed: a compact JWS, for the supplier.
func (c *Client) SignManifest(ctx context.Context, r ManifestRequest) (string, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	resp, err := c.sealKey.SignManifest(ctx, &cryptopb.SignManifestRequest{
		AccessToken: r.AccessToken, SupplierRecord: r.SupplierRecord, InteractionId: r.InteractionID[:],
		Query: r.Query[:], Format: r.Format, Digest: r.Digest[:],
		Points: r.Points, Given: r.Given, Partly: r.Partly, Withheld: r.Withheld, Failed: r.Failed, LeftOut: r.LeftOut,
		Expected: r.Expected, Delivered: r.Delivered, Parts: r.Parts,
	})
	if err != nil {
		return "", fromGRPC(err)
	}
	return resp.Manifest, nil
}
