package server

import (
	"context"

	"kluis/openapi"
)

// QueryReadings answers POST /v1/readings/query.
func (s *Server) QueryReadings(context.Context, openapi.QueryReadingsRequestObject) (openapi.QueryReadingsResponseObject, error) {
	return nil, fail(notFound, nil)
}
