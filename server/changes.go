package server

import (
	"context"

	"kluis/openapi"
)

// ListChanges answers GET /v1/changes.
func (s *Server) ListChanges(context.Context, openapi.ListChangesRequestObject) (openapi.ListChangesResponseObject, error) {
	return nil, fail(notFound, nil)
}
