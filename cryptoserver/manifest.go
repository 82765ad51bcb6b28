package cryptoserver

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"

	"kluis/authz"
	"kluis/cryptoserver/cryptopb"
	"kluis/internal/authn"
)

// manifestType is the typ of a manifest (RFC 7515). No other JWS has it; what
// else a seal key signs begins with a zero (package canonical) or holds a line
// feed (package checkpoint), and this with "eyJ" and no line feed.
const manifestType = "kluis-manifest+jwt"

// manifestFormats are those of a stream.
var manifestFormats = []string{"ndjson", "csv"}

// maxCounted is the most values that a manifest may count: the most that every
// reader of JSON keeps exactly (RFC 8259, 6).
const maxCounted = 1<<53 - 1

type manifestHeader struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
	Type      string `json:"typ"`
}

// manifestClaims are written in this order, so that what is signed has one form.
type manifestClaims struct {
	Issuer      string `json:"iss"` // this server
	Subject     string `json:"sub"` // the supplier's GLN
	IssuedAt    int64  `json:"iat"`
	Interaction string `json:"jti"`
	Query       string `json:"query"`
	Format      string `json:"format"`
	Points      uint32 `json:"points"`
	Given       uint32 `json:"given"`
	Partly      uint32 `json:"partly"`
	Withheld    uint32 `json:"withheld"`
	Failed      uint32 `json:"failed"`
	LeftOut     uint32 `json:"left_out"`
	Expected    uint64 `json:"expected"`
	Delivered   uint64 `json:"delivered"`
	Parts       uint32 `json:"parts"`
	Digest      string `json:"digest"`
}

// SignManifest signs, for the supplier whose token it is, what the gateway says
// came of a stream of readings. Who asked, and when, is this server's word; the
// counts and the digest are the gateway's, which the supplier compares with what
// it received. It opens nothing and gives no right, so it needs no recent control
// feed, and is not in the journal: what was opened for the stream is.
func (s *Server) SignManifest(ctx context.Context, req *cryptopb.SignManifestRequest) (*cryptopb.SignManifestResponse, error) {
	if s.tokens.Seal == nil {
		return nil, notServed(RoleSeal)
	}
	callOf(ctx).units = 1
	claims, err := parseManifest(req)
	if err != nil {
		return nil, err
	}
	now := s.now()
	caller, err := s.caller(ctx, req.AccessToken, req.SupplierRecord, authn.ScopeReadings, now)
	if err != nil {
		return nil, err
	}
	if caller.Employee() != nil {
		return nil, refuse(codes.PermissionDenied, cryptopb.ReasonScope, "streams of readings, and so manifests, are for suppliers", nil)
	}
	claims.Issuer, claims.Subject, claims.IssuedAt = s.id, caller.Supplier().String(), now.Unix()
	jws, err := s.sealer.signManifest(claims)
	if err != nil {
		return nil, s.tokenError(ctx, RoleSeal, err)
	}
	return &cryptopb.SignManifestResponse{Manifest: jws}, nil
}

// parseManifest takes what the gateway says, if it agrees with itself.
func parseManifest(req *cryptopb.SignManifestRequest) (manifestClaims, error) {
	var none manifestClaims
	id, err := uuid.FromBytes(req.InteractionId)
	switch {
	case err != nil:
		return none, malformed("interaction id of 16 bytes")
	case len(req.Query) != sha256.Size || len(req.Digest) != sha256.Size:
		return none, malformed("digests of 32 bytes")
	case !slices.Contains(manifestFormats, req.Format):
		return none, malformed("format ndjson or csv")
	case uint64(req.Points) != uint64(req.Given)+uint64(req.Partly)+uint64(req.Withheld)+uint64(req.Failed):
		return none, malformed("as many metering points as were given, partly given, withheld, and failed")
	case req.Delivered > req.Expected || req.Expected > maxCounted:
		return none, malformed("no more values delivered than expected, and no more expected than 2^53-1")
	case req.Parts == 0:
		return none, malformed("at least one part")
	}
	return manifestClaims{
		Interaction: id.String(), Query: base64.RawURLEncoding.EncodeToString(req.Query), Format: req.Format,
		Points: req.Points, Given: req.Given, Partly: req.Partly, Withheld: req.Withheld, Failed: req.Failed, LeftOut: req.LeftOut,
		Expected: req.Expected, Delivered: req.Delivered, Parts: req.Parts, Digest: base64.RawURLEncoding.EncodeToString(req.Digest),
	}, nil
}

// signManifest makes the compact JWS.
func (s *sealSigner) signManifest(claims manifestClaims) (string, error) {
	kid, err := authn.KeyID(s.pub)
	if err != nil {
		return "", err
	}
	header, err := json.Marshal(manifestHeader{Algorithm: "ES256", KeyID: kid, Type: manifestType})
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	input := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(payload)
	sig, err := authz.SignDigest(s, sha256.Sum256([]byte(input)))
	if err != nil {
		return "", err
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(sig[:]), nil
}
