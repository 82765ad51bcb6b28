package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"testing"
	"time"

	"kluis/openapi/client"
	"kluis/server"
)

// TestManifestKeys: the keys that the gateway names are those under which what its
// cryptoservers sign verifies, whichever of them did, and need no token.
func TestManifestKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	r := w.do(w.http(w.a.cert), http.MethodGet, "/v1/manifest-keys", func(r *http.Request) { r.Header.Del("Authorization") })
	var set client.JwkSet
	if err := json.Unmarshal(r.body, &set); r.status != 200 || err != nil || len(set.Keys) != len(w.pool.hsm.SealKeys) {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if again := w.do(w.http(w.a.cert), http.MethodGet, "/v1/manifest-keys", func(r *http.Request) { r.Header.Del("Authorization") }); !bytes.Equal(again.body, r.body) {
		t.Error("another order each time")
	}
	if bytes.Contains(r.body, []byte(`"d"`)) {
		t.Error("a private key")
	}
	q := server.ManifestRequest{
		Token: w.token(w.a), Supplier: w.a.record, Interaction: [16]byte{1}, Query: [32]byte{2}, Digest: [32]byte{3}, Format: "csv",
		Points: 2, Given: 1, Failed: 1, LeftOut: 3, Expected: 5, Delivered: 4, Parts: 6,
	}
	signer := w.many.Manifests
	signers := map[string]bool{}
	for range 20 {
		jws, err := signer.SignManifest(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		m, err := client.VerifyManifest(jws, set)
		if err != nil || m.Supplier != w.a.gln.String() || m.Query != q.Query || m.Digest != q.Digest || m.Format != "csv" ||
			m.Points != 2 || m.Given != 1 || m.Failed != 1 || m.LeftOut != 3 || m.Expected != 5 || m.Delivered != 4 || m.Parts != 6 ||
			time.Since(m.IssuedAt) > time.Minute {
			t.Fatalf("%+v, %v", m, err)
		}
		signers[m.Server] = true
	}
	if len(signers) == 0 {
		t.Error("no server signed")
	}
	q.Token = w.token(w.b)
	if _, err := signer.SignManifest(t.Context(), q); !errors.Is(err, server.ErrTokenRefused) {
		t.Errorf("another's token: %v", err)
	}
}
