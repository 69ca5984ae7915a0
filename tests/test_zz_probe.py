from conftest import *
def test_q(services, conf):
    a = Api(api_app.make_app(services))
    import webob.exc
    o = webob.exc.HTTPBadRequest.__init__
    def i(self,*a,**k):
        import traceback; traceback.print_stack(limit=6); o(self,*a,**k)
    webob.exc.HTTPBadRequest.__init__ = i
    try:
        r=a('GET','/v1/clusters/%ff'); print(r.status)
        r=a('GET','/v1/clusters?limit=%ff'); print(r.status)
    finally:
        webob.exc.HTTPBadRequest.__init__ = o
