package cryptoserver

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"kluis/cryptoserver/cryptopb"
	"kluis/internal/authn"
)

// SignToken signs an access token for a supplier, bound to a certificate that
// the supplier's sealed record accepts now. Type, issuer, audience, key and
// times are this server's to set; nobody can have a digest signed.
func (s *Server) SignToken(ctx context.Context, req *cryptopb.SignTokenRequest) (*cryptopb.SignTokenResponse, error) {
	if s.tokens.Sign == nil {
		return nil, notServed(RoleSign)
	}
	callOf(ctx).units = 1
	now := s.now()
	record, err := s.sealKeys.Supplier(req.SupplierRecord)
	if err != nil {
		return nil, refuse(codes.PermissionDenied, cryptopb.ReasonSupplierInvalid, "the supplier record does not verify under the pinned seal keys", err)
	}
	if s.suppliers.outdated(record.GLN(), record.Version(), now) || s.supersededSupplier(record) {
		return nil, outdatedSupplier()
	}
	if len(req.Thumbprint) != 32 {
		return nil, malformed("thumbprint of 32 bytes")
	}
	thumbprint := [32]byte(req.Thumbprint)
	if err := record.Accepts(thumbprint, now); err != nil {
		return nil, refuse(codes.PermissionDenied, cryptopb.ReasonSupplierInvalid, "no token for this certificate: "+err.Error(), nil)
	}
	if len(req.Scopes) == 0 || len(req.Scopes) > maxFields {
		return nil, malformed("at least one scope")
	}
	held := record.Scopes()
	for i, scope := range req.Scopes {
		if !slices.Contains(held, scope) {
			return nil, refuse(codes.PermissionDenied, cryptopb.ReasonScope, "a scope is not the supplier's", nil)
		}
		if slices.Contains(req.Scopes[:i], scope) {
			return nil, malformed("a scope is repeated")
		}
	}
	lifetime := time.Duration(req.LifetimeSeconds) * time.Second
	if lifetime <= 0 || lifetime > authn.MaxLifetime {
		return nil, malformed("lifetime of 1 to %d seconds", int(authn.MaxLifetime.Seconds()))
	}
	claims := authn.TokenClaims{
		Issuer: s.issue.Issuer, Audience: s.issue.Audience,
		Supplier: record.GLN(), Scopes: req.Scopes, Thumbprint: thumbprint,
		IssuedAt: now, Lifetime: lifetime,
	}
	raw, err := authn.SignToken(s.tokens.Sign.Signer(), s.issue.KeyID, claims)
	if err != nil {
		return nil, s.tokenError(ctx, RoleSign, err)
	}
	return &cryptopb.SignTokenResponse{AccessToken: raw, ExpiresAt: claims.ExpiresAt().UnixMicro()}, nil
}
