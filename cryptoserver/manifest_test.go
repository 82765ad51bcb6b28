package cryptoserver_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"kluis/authz"
	"kluis/cryptoserver"
	"kluis/cryptoserver/checkpoint"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/cryptopb"
	"kluis/internal/authn"
	api "kluis/openapi/client"
)

// stream is what came of one of a supplier's.
func (w *world) stream(p *party) client.ManifestRequest {
	w.t.Helper()
	return client.ManifestRequest{
		AccessToken: w.token(p), SupplierRecord: p.record,
		InteractionID: uuid.MustParse("0197d0a2-7b1c-7c3a-9d55-2f0e6a4b8c11"), Query: [32]byte{1}, Format: "ndjson", Digest: [32]byte{2},
		Points: 10, Given: 4, Partly: 3, Withheld: 2, Failed: 1, LeftOut: 7, Expected: 100, Delivered: 99, Parts: 2,
	}
}

const newestGrace = time.Minute

// jwkSet is what GET /v1/manifest-keys says.
func jwkSet(t testing.TB, keys ...*ecdsa.PublicKey) (set api.JwkSet) {
	t.Helper()
	b, err := authn.JWKS(keys...)
	if err == nil {
		err = json.Unmarshal(b, &set)
	}
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestSignManifest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.supplier("871234500001", "Energy")
	q := w.stream(s)
	jws, err := w.as("gateway").SignManifest(t.Context(), q)
	w.must(err)
	m, err := api.VerifyManifest(jws, jwkSet(t, w.hsm.SealKeys...))
	w.must(err)
	want := api.Manifest{
		Server: "cs1", Supplier: s.gln.String(), IssuedAt: w.clock.now().Truncate(time.Second), InteractionID: "0197d0a2-7b1c-7c3a-9d55-2f0e6a4b8c11",
		Query: q.Query, Format: "ndjson", Points: 10, Given: 4, Partly: 3, Withheld: 2, Failed: 1, LeftOut: 7,
		Expected: 100, Delivered: 99, Parts: 2, Digest: q.Digest,
	}
	if m != want {
		t.Errorf("%+v\nwant %+v", m, want)
	}
	// Nothing at all came of it: that is one, too.
	q.Points, q.Given, q.Partly, q.Withheld, q.Failed, q.Expected, q.Delivered, q.Parts, q.Format = 0, 0, 0, 0, 0, 0, 0, 1, "csv"
	jws, err = w.as("gateway").SignManifest(t.Context(), q)
	w.must(err)
	if m, err = api.VerifyManifest(jws, jwkSet(t, w.hsm.SealKeys...)); err != nil || m.Points != 0 || m.LeftOut != 7 {
		t.Errorf("%+v, %v", m, err)
	}
	// It is signed by a server that lost the control feed; nothing is opened on it.
	w.clock.advance(2 * time.Minute)
	q = w.stream(s)
	if _, err := w.as("gateway").SignManifest(t.Context(), q); err != nil {
		t.Errorf("without a recent control feed: %v", err)
	}
}

// TestSignManifestForNobodyElse: a captured gateway has no manifest signed but for
// who asks with its own token, and none that contradicts itself.
func TestSignManifestForNobodyElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, other, portal := w.supplier("871234500001", "Energy"), w.supplier("871234500002", "Other"), w.portal()
	w.mayAsk(other)
	old := other.record
	w.mayAsk(other)
	if _, err := w.as("gateway").SignManifest(t.Context(), w.stream(other)); err != nil {
		t.Fatal(err)
	}
	w.advance(newestGrace + time.Millisecond) // while which the record before is good
	for name, c := range map[string]struct {
		change func(*client.ManifestRequest)
		want   cryptopb.Reason
	}{
		"no token":                {func(r *client.ManifestRequest) { r.AccessToken = "" }, cryptopb.ReasonTokenInvalid},
		"a token that is damaged": {func(r *client.ManifestRequest) { r.AccessToken = r.AccessToken[:len(r.AccessToken)-6] }, cryptopb.ReasonTokenInvalid},
		"another's record":        {func(r *client.ManifestRequest) { r.SupplierRecord = other.record }, cryptopb.ReasonSupplierInvalid},
		"another's token":         {func(r *client.ManifestRequest) { r.AccessToken = w.token(other) }, cryptopb.ReasonSupplierInvalid},
		"no record":               {func(r *client.ManifestRequest) { r.SupplierRecord = nil }, cryptopb.ReasonSupplierInvalid},
		"a record put back": {func(r *client.ManifestRequest) {
			r.AccessToken, r.SupplierRecord = w.token(other), old
		}, cryptopb.ReasonSupplierInvalid},
		"a token for consents": {func(r *client.ManifestRequest) {
			r.AccessToken, r.SupplierRecord = w.consentToken(other), other.record
		}, cryptopb.ReasonScope},
		"an employee": {func(r *client.ManifestRequest) {
			r.AccessToken, r.SupplierRecord = w.staffToken(portal, "kim", authz.Agent, w.readingsErrand()), portal.record
		}, cryptopb.ReasonScope},

		"more given than answered":    {func(r *client.ManifestRequest) { r.Given++ }, cryptopb.ReasonMalformed},
		"more answered than given":    {func(r *client.ManifestRequest) { r.Points++ }, cryptopb.ReasonMalformed},
		"counts that overflow":        {func(r *client.ManifestRequest) { r.Given = 1<<32 - 2; r.Partly = 9 }, cryptopb.ReasonMalformed},
		"more than expected":          {func(r *client.ManifestRequest) { r.Delivered = 101 }, cryptopb.ReasonMalformed},
		"more than a number can hold": {func(r *client.ManifestRequest) { r.Expected = 1 << 53 }, cryptopb.ReasonMalformed},
		"no part":                     {func(r *client.ManifestRequest) { r.Parts = 0 }, cryptopb.ReasonMalformed},
		"no format":                   {func(r *client.ManifestRequest) { r.Format = "" }, cryptopb.ReasonMalformed},
		"a format of its own":         {func(r *client.ManifestRequest) { r.Format = `csv","sub":"871234500002` }, cryptopb.ReasonMalformed},
	} {
		q := w.stream(s)
		c.change(&q)
		jws, err := w.as("gateway").SignManifest(t.Context(), q)
		if e := (*client.Error)(nil); jws != "" || !errors.As(err, &e) || e.Reason != c.want {
			t.Errorf("%s: %q, %v, want %s", name, jws, err, c.want)
		}
	}
	api := w.raw(w.clientTLS("gateway"))
	for name, change := range map[string]func(*cryptopb.SignManifestRequest){
		"an interaction id of 15 bytes": func(r *cryptopb.SignManifestRequest) { r.InteractionId = make([]byte, 15) },
		"no query":                      func(r *cryptopb.SignManifestRequest) { r.Query = nil },
		"a digest of 33 bytes":          func(r *cryptopb.SignManifestRequest) { r.Digest = make([]byte, 33) },
	} {
		r := &cryptopb.SignManifestRequest{
			AccessToken: w.token(s), SupplierRecord: s.record, InteractionId: make([]byte, 16), Query: make([]byte, 32), Format: "csv", Digest: make([]byte, 32), Parts: 1,
		}
		change(r)
		if _, err := api.SignManifest(t.Context(), r); reasonOf(err) != cryptopb.ReasonMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	expired := w.stream(s)
	w.advance(6 * time.Minute)
	if _, err := w.as("gateway").SignManifest(t.Context(), expired); !errors.Is(err, client.ErrTokenRefused) {
		t.Errorf("with a token that has expired: %v", err)
	}
}

// TestManifestIsNothingElse: the seal key also signs facts, the control feed and
// the audit log's tree, and tokens are JWS, too. None is ever taken for another,
// even where their keys are mixed up.
func TestManifestIsNothingElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.supplier("871234500001", "Energy")
	q := w.stream(s)
	jws, err := w.as("gateway").SignManifest(t.Context(), q)
	w.must(err)
	i := strings.LastIndexByte(jws, '.')
	input := jws[:i]
	sig, err := base64.RawURLEncoding.DecodeString(jws[i+1:])
	w.must(err)

	// As an access token: where issuers' keys are pinned, and where somebody
	// pinned the seal keys as those of an issuer.
	sealJWKS, err := authn.JWKS(w.hsm.SealKeys...)
	w.must(err)
	keys, err := authn.PinnedKeys(sealJWKS)
	w.must(err)
	mixed, err := authn.NewVerifier(w.clock.now, authn.Issuer{URL: "cs1", Audience: audience, Keys: keys, MaxLifetime: 5 * time.Minute})
	w.must(err)
	for name, v := range map[string]*authn.Verifier{"the issuer's keys": w.verifier, "the seal keys": mixed} {
		if _, err := v.VerifyDetached(t.Context(), jws); err == nil {
			t.Errorf("a manifest is an access token under %s", name)
		}
	}
	q.AccessToken = jws
	if _, err := w.as("gateway").SignManifest(t.Context(), q); !errors.Is(err, client.ErrTokenRefused) {
		t.Errorf("a manifest for a token: %v", err)
	}

	// A token as a manifest, where the issuer's keys are among those of manifests.
	if _, err := api.VerifyManifest(w.token(s), jwkSet(t, w.hsm.SignKeys...)); !errors.Is(err, api.ErrManifest) {
		t.Errorf("an access token is a manifest: %v", err)
	}

	// What it is signed over, as a sealed fact.
	seals := w.sealKeysOf()
	kid := seals.IDs()[0]
	for name, sealed := range map[string][]byte{
		"as it is":           append([]byte(input), sig...),
		"behind a key id":    append(append(bytes.Clone(kid[:]), input...), sig...),
		"in another's place": append(bytes.Clone(s.record[:len(s.record)-len(sig)]), sig...),
	} {
		if _, err := seals.Supplier(sealed); err == nil {
			t.Errorf("a manifest %s is a supplier record", name)
		}
		if _, err := seals.LegalFile(sealed); err == nil {
			t.Errorf("a manifest %s is a legal file", name)
		}
	}
	if seals.VerifyDigest(w.sealKeyID(), sha256.Sum256([]byte(input)), [64]byte(sig)) != nil {
		t.Error("else the above says nothing: the signature is not over the digest of what goes before it")
	}

	// A sealed fact as a manifest: what it is signed over is no JWS, whatever the
	// parts are taken for.
	over := s.record[:len(s.record)-64]
	factSig := base64.RawURLEncoding.EncodeToString(s.record[len(s.record)-64:])
	set := jwkSet(t, w.hsm.SealKeys...)
	header, claims, _ := strings.Cut(input, ".")
	for name, forged := range map[string]string{
		"as it is":                 string(over) + "." + factSig,
		"encoded":                  base64.RawURLEncoding.EncodeToString(over) + "." + factSig,
		"for the claims":           header + "." + base64.RawURLEncoding.EncodeToString(over) + "." + factSig,
		"a signature of it":        header + "." + claims + "." + factSig,
		"as it is, with two parts": string(over) + ".." + factSig,
	} {
		if _, err := api.VerifyManifest(forged, set); !errors.Is(err, api.ErrManifest) {
			t.Errorf("a supplier record %s is a manifest: %v", name, err)
		}
	}
	if over[0] != 0 || !strings.HasPrefix(input, "eyJ") {
		t.Errorf("what is signed begins with %q and %q", over[:4], input[:4])
	}

	// The head of a tree as a manifest, and the other way round: an origin is the
	// auditor's to choose.
	note, err := w.as("auditor").SignCheckpoint(t.Context(), strings.ReplaceAll(header, "+", "-")[:64], 1, [32]byte{1})
	w.must(err)
	if _, err := api.VerifyManifest(note, set); !errors.Is(err, api.ErrManifest) {
		t.Errorf("a checkpoint is a manifest: %v", err)
	}
	if _, err := checkpoint.Open(input+"\n\n— "+header[:64]+" "+base64.StdEncoding.EncodeToString(sig)+"\n", header[:64], w.hsm.SealKeys...); err == nil {
		t.Error("a manifest is a checkpoint")
	}
}

func (w *world) sealKeyID() authz.KeyID {
	w.t.Helper()
	return authz.KeyIDOf(w.hsm.SealKeys[0])
}

// TestManifestNeedsIssuers: without them no token can be verified.
func TestManifestNeedsIssuers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := cryptoserver.New(context.Background(), cryptoserver.Config{
		ID: "cs9", TLS: w.serverTLS("cryptoserver-9"), Allow: map[string][]string{"SignManifest": {"gateway"}}, Profile: w.profile, SealKeys: w.hsm.SealKeys,
		Tokens: cryptoserver.Tokens{Seal: w.seal}, Journal: w.newJournal(), Clock: w.clock.now, Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	if err == nil || !strings.Contains(err.Error(), "issuers") {
		t.Errorf("%v", err)
	}
}
