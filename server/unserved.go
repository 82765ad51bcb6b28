package server

import (
	"context"

	"kluis/openapi"
)

// Operations of the contract that have no route yet: replaced one by one.

func (s *Server) GetAccessLog(context.Context, openapi.GetAccessLogRequestObject) (openapi.GetAccessLogResponseObject, error) {
	return nil, fail(notFound, nil)
}
