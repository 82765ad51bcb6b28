package server

import (
	"context"
	"fmt"
	"net/http"

	"kluis/internal/authn"
	"kluis/openapi"
)

// GetManifestKeys answers GET /v1/manifest-keys: the pinned seal keys, under one
// of which every manifest verifies.
func (s *Server) GetManifestKeys(context.Context, openapi.GetManifestKeysRequestObject) (openapi.GetManifestKeysResponseObject, error) {
	set, err := authn.JWKS(s.seals.PublicKeys()...)
	if err != nil {
		return nil, fmt.Errorf("manifest keys: %w", err)
	}
	return jwkSet(append(set, '\n')), nil
}

// jwkSet is a rendered set of public keys.
type jwkSet []byte

func (b jwkSet) VisitGetManifestKeysResponse(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "application/json")
	_, err := w.Write(b)
	return err
}
