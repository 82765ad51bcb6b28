package cryptoserver

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"kluis/authz"
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
	record, thumbprint, err := s.tokenClient(req.SupplierRecord, req.Thumbprint, now)
	if err != nil {
		return nil, err
	}
	if len(req.Scopes) == 0 || len(req.Scopes) > maxFields {
		return nil, malformed("at least one scope")
	}
	held := record.Scopes()
	for i, scope := range req.Scopes {
		// An employee's scope is signed with the employee's name only.
		if !slices.Contains(held, scope) || scope == authn.ScopeStaff {
			return nil, refuse(codes.PermissionDenied, cryptopb.ReasonScope, "a scope is not the supplier's", nil)
		}
		if slices.Contains(req.Scopes[:i], scope) {
			return nil, malformed("a scope is repeated")
		}
	}
	lifetime, err := tokenLifetime(req.LifetimeSeconds)
	if err != nil {
		return nil, err
	}
	return s.signToken(ctx, authn.TokenClaims{
		Client: record.GLN(), Scopes: req.Scopes, Thumbprint: thumbprint, IssuedAt: now, Lifetime: lifetime,
	})
}

// tokenClient is the client of a token to be, and the certificate that the
// token will be bound to, which the client's sealed record accepts now.
func (s *Server) tokenClient(sealed, leaf []byte, now time.Time) (*authz.Supplier, [32]byte, error) {
	var thumbprint [32]byte
	record, err := s.sealKeys.Supplier(sealed)
	if err != nil {
		return nil, thumbprint, refuse(codes.PermissionDenied, cryptopb.ReasonSupplierInvalid, "the supplier record does not verify under the pinned seal keys", err)
	}
	if s.suppliers.outdated(record.GLN(), record.Version(), now) || s.supersededSupplier(record) {
		return nil, thumbprint, outdatedSupplier()
	}
	if len(leaf) != len(thumbprint) {
		return nil, thumbprint, malformed("thumbprint of 32 bytes")
	}
	thumbprint = [32]byte(leaf)
	if err := record.Accepts(thumbprint, now); err != nil {
		return nil, thumbprint, refuse(codes.PermissionDenied, cryptopb.ReasonSupplierInvalid, "no token for this certificate: "+err.Error(), nil)
	}
	return record, thumbprint, nil
}

func tokenLifetime(seconds uint32) (time.Duration, error) {
	lifetime := time.Duration(seconds) * time.Second
	if lifetime <= 0 || lifetime > authn.MaxLifetime {
		return 0, malformed("lifetime of 1 to %d seconds", int(authn.MaxLifetime.Seconds()))
	}
	return lifetime, nil
}

// signToken signs claims that were checked, as this server's issuer.
func (s *Server) signToken(ctx context.Context, claims authn.TokenClaims) (*cryptopb.SignTokenResponse, error) {
	claims.Issuer, claims.Audience = s.issue.Issuer, s.issue.Audience
	raw, err := authn.SignToken(s.tokens.Sign.Signer(), s.issue.KeyID, claims)
	if err != nil {
		return nil, s.tokenError(ctx, RoleSign, err)
	}
	return &cryptopb.SignTokenResponse{AccessToken: raw, ExpiresAt: claims.ExpiresAt().UnixMicro()}, nil
}
