package cryptoserver

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"kluis/authz"
	"kluis/cryptoserver/cryptopb"
	"kluis/internal/authn"
	"kluis/meter"
)

// IdentityVerifier verifies employees' ID tokens (*authn.Identities).
// Implementers are safe for concurrent use.
type IdentityVerifier interface {
	Verify(ctx context.Context, raw string, now time.Time) (authn.Identity, error)
}

// Staff is what the sign role needs to sign tokens of employees.
type Staff struct {
	Operator   meter.GLN // the grid operator's own, whose employees they are
	Identities IdentityVerifier
}

// SignStaffToken signs an access token for one errand of one employee. It takes
// nobody's word for who that is: the employee's ID token is verified here, as
// are the grid operator's sealed record, the portal's certificate under it, and
// whether the employee's role may have the errand. The subject, the role and
// the errand of the token are what was verified, and it ends no later than the
// ID token.
func (s *Server) SignStaffToken(ctx context.Context, req *cryptopb.SignStaffTokenRequest) (*cryptopb.SignTokenResponse, error) {
	if s.tokens.Sign == nil {
		return nil, notServed(RoleSign)
	}
	if s.staff == nil {
		return nil, refuse(codes.FailedPrecondition, cryptopb.ReasonRoleNotServed,
			"this server signs no tokens of employees: name operator_gln and identity_providers in the configuration, or ask another server", nil)
	}
	callOf(ctx).units = 1
	now := s.now()
	record, thumbprint, err := s.tokenClient(req.SupplierRecord, req.Thumbprint, now)
	if err != nil {
		return nil, err
	}
	switch {
	case record.GLN() != s.staff.Operator:
		return nil, refuse(codes.PermissionDenied, cryptopb.ReasonSupplierInvalid, "only the grid operator's own portal is given tokens of employees", nil)
	case !slices.Contains(record.Scopes(), authn.ScopeStaff):
		return nil, refuse(codes.PermissionDenied, cryptopb.ReasonScope, "the scope "+authn.ScopeStaff+" is missing from the grid operator's record", nil)
	}
	lifetime, err := tokenLifetime(req.LifetimeSeconds)
	if err != nil {
		return nil, err
	}
	id, err := s.staff.Identities.Verify(ctx, req.IdToken, now)
	if err != nil {
		return nil, refuse(codes.PermissionDenied, cryptopb.ReasonEmployee, employeeRefused(authn.Reason(err)), err)
	}
	errand, err := authn.ParseErrand([]byte(req.AuthorizationDetails), s.profile)
	if err != nil {
		return nil, refuse(codes.InvalidArgument, cryptopb.ReasonErrand, err.Error(), nil)
	}
	if !id.Role.May(errand.Kind) {
		return nil, refuse(codes.PermissionDenied, cryptopb.ReasonErrand, "the employee's role ("+id.Role.String()+") may not have an errand of this type", nil)
	}
	// Whole seconds of both: what is left of the ID token is one at least.
	lifetime = min(lifetime, id.ExpiresAt.Sub(now.Truncate(time.Second)))
	return s.signToken(ctx, authn.TokenClaims{
		Client: record.GLN(), Scopes: []string{authn.ScopeStaff}, Thumbprint: thumbprint, IssuedAt: now, Lifetime: lifetime,
		Employee: &authn.Employee{Employee: authz.Employee{Subject: id.Subject, Role: id.Role, Errand: errand}, Profile: s.profile},
	})
}

// employeeRefused says what to do; the portal shows it.
func employeeRefused(reason string) string {
	switch reason {
	case "expired", "signed_in_too_long_ago":
		return "the employee's ID token is not accepted (" + reason + "): have the employee sign in again"
	case "no_role", "malformed_roles":
		return "the employee's ID token is not accepted (" + reason + "): the identity provider must give the employee a role that is configured here"
	default:
		return "the employee's ID token is not accepted (" + reason + "): compare the identity provider, its keys and the client id with the configuration of the cryptoservers"
	}
}
