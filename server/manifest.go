package server

import (
	"context"

	"kluis/openapi"
)

// GetManifestKeys answers GET /v1/manifest-keys.
func (s *Server) GetManifestKeys(context.Context, openapi.GetManifestKeysRequestObject) (openapi.GetManifestKeysResponseObject, error) {
	return nil, fail(notFound, nil)
}
