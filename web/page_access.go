package web

// accessRoutes are those of templates/access.html.
func (p *Portal) accessRoutes() []route { return nil }
